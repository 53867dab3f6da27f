"""The thread that owns the engine: requests come from the server's event loop, and pieces of answers go back to it."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from mm1.generate.request import EngineRequest, Event, Reason
from mm1.generate.sampling import Sampled
from mm1.generate.serving import ServingEngine
from mm1.serve.errors import ApiError, client_gone, going
from mm1.serve.metrics import Metrics, Span
from mm1.serve.text_stream import TextStream

log = logging.getLogger("mm1")

STOP_SECONDS = 1
"""How long the end of the server waits for the engine's last step."""


@dataclass(frozen=True, slots=True)
class Job:
    """One answer to write. The engine's request gives its tokens to `text`."""

    request: EngineRequest
    text: TextStream


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step added to answer `number` of a request; `reason` tells that the answer is complete.

    `prompt` are the prompt's tokens if they were asked for; `cached` are positions of it that were known before; `stop`
    is the token that ended the answer, which is no part of its text.
    """

    number: int
    text: str
    sampled: tuple[Sampled, ...] = ()
    reason: Reason | None = None
    prompt: tuple[Sampled | None, ...] = ()
    cached: int = 0
    stop: Sampled | None = None


@dataclass(slots=True)
class Times:
    """When, in seconds of `time.monotonic`, an answer was submitted, began to be computed, and got its tokens."""

    submitted: float
    started: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0

    def span(self, ended: float) -> Span:
        """All times of an answer that has ended."""
        return Span(self.submitted, self.started, self.first_token, self.last_token, ended)


@dataclass(slots=True)
class Ticket:
    """An answer in the scheduler until it ends.

    It lets go of its request, and so of the pictures in it, as soon as the engine has it: a ticket and its answers
    refer to each other, and would keep the pixels until Python looks for such cycles.
    """

    request: EngineRequest | None
    text: TextStream
    prompt_tokens: int
    number: int
    answering: "Answering"
    times: Times
    engine_id: int = -1
    reason: Reason | None = None


@dataclass(eq=False, slots=True)
class Answering:
    """The answers to one request: iterate over their pieces until all are complete, and `close` in any case."""

    scheduler: "Scheduler"
    loop: asyncio.AbstractEventLoop
    deadline: float
    tickets: list[Ticket] = field(default_factory=list)
    queue: "asyncio.Queue[Piece | ApiError]" = field(default_factory=asyncio.Queue)

    async def pieces(self) -> AsyncIterator[Piece]:
        """The pieces of all answers as they come.

        Raises:
            ApiError: the answers cannot be completed.
        """
        left = len(self.tickets)
        while left:
            piece = await self.queue.get()
            if isinstance(piece, ApiError):
                raise piece
            left -= piece.reason is not None
            yield piece

    def close(self) -> None:
        """Let go of answers that have not ended: their client is gone, or has all it asked for."""
        self.scheduler.abort(self)
        self.queue.put_nowait(client_gone())  # for whoever still iterates


class Scheduler:
    """Gives requests to the engine in the order of their arrival, and steps it while there is work.

    `submit` and `abort` are called by the event loop; everything else happens in the scheduler's own thread.
    """

    def __init__(self, engine: ServingEngine, metrics: Metrics, *, max_waiting: int):
        self.engine, self.metrics, self.max_waiting = engine, metrics, max_waiting
        self._condition = threading.Condition()
        self._inbox: list[Ticket] = []
        self._leaving: list[Answering] = []
        self._open: set[Answering] = set()  # not yet closed; only the event loop looks at it
        self._tickets: dict[int, Ticket] = {}  # by the engine's id
        self._queued = 0  # answers that the engine has, and that have no row
        self._draining = self._stopped = False
        self._rate = Rate()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether requests are taken and answered."""
        return self._thread.is_alive() and not self._draining

    @property
    def waiting(self) -> int:
        """Answers that wait for a row."""
        return len(self._inbox) + self._queued

    @property
    def running(self) -> int:
        """Answers that are being written."""
        return max(0, len(self._tickets) - self._queued)

    def submit(self, jobs: Sequence[Job], *, deadline: float) -> Answering:
        """The answers to the jobs, which the next steps write.

        Raises:
            ApiError: too much waits already, or the server is about to end.
        """
        now = time.monotonic()
        answering = Answering(self, asyncio.get_running_loop(), deadline)
        answering.tickets = [
            Ticket(job.request, job.text, len(job.request.prompt.tokens), number, answering, Times(now))
            for number, job in enumerate(jobs)
        ]
        with self._condition:
            if self._draining or self._stopped:
                raise going()
            if self.waiting and self.waiting + len(jobs) > self.max_waiting:
                seconds = self._rate.seconds(self.waiting)
                raise ApiError(
                    429,
                    f"{self.waiting} answers wait already; ask again in {seconds} s",
                    code="queue_full",
                    headers={"Retry-After": str(seconds)},
                )
            self._inbox += answering.tickets
            self._condition.notify()
        self._open.add(answering)
        return answering

    def abort(self, answering: Answering) -> None:
        """Drop what has not ended of these answers, whose client reads no more of them."""
        self._open.discard(answering)
        if all(ticket.reason is not None for ticket in answering.tickets):
            return
        with self._condition:
            self._leaving.append(answering)
            self._condition.notify()

    @property
    def idle(self) -> bool:
        """Whether all requests have got their answers."""
        return not self._open

    def give_up(self) -> None:
        """Tell all who still wait for answers that the server ends, without waiting for the engine's step."""
        for answering in list(self._open):
            answering.queue.put_nowait(going())

    def drain(self) -> None:
        """Take nothing new, refuse what waits, and go on with what runs."""
        with self._condition:
            self._draining = True
            self._condition.notify()

    def stop(self) -> None:
        """End what still runs, and the thread if its step ends within `STOP_SECONDS`; else it ends with the process."""
        with self._condition:
            self._draining = self._stopped = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=STOP_SECONDS)

    def _run(self) -> None:
        refused = False
        while True:
            with self._condition:
                while not (self._inbox or self._leaving or self.engine.busy or self._stopped):
                    if self._draining and not refused:
                        break
                    self._condition.wait()
                arrived, self._inbox = self._inbox, []
                leaving, self._leaving = self._leaving, []
                draining, stopped = self._draining, self._stopped
            try:
                self._submit(arrived)
                for answering in leaving:
                    self._drop(answering, None)
                self._drop_late()
                if draining and not refused:
                    refused = True
                    self._refuse_waiting()
                if stopped:
                    self._fail(list(self._tickets.values()), going())
                    return
                self._queued = len(self.engine.waiting)
                if self.engine.busy:
                    began = time.monotonic()
                    self._deliver(self.engine.step(), began)
            except Exception:
                log.exception("a step of the engine failed; all its requests are answered with an error")
                self._fail(list(self._tickets.values()), ApiError(500, "the model failed; ask again"))
            self._queued = len(self.engine.waiting)

    def _submit(self, arrived: Sequence[Ticket]) -> None:
        for ticket in arrived:
            request, ticket.request = ticket.request, None
            if ticket.reason is None and request is not None:
                ticket.engine_id = self.engine.submit(request)
                self._tickets[ticket.engine_id] = ticket

    def _deliver(self, events: Sequence[Event], began: float) -> None:
        """Give what a step wrote to the event loop, in one call."""
        now, deliveries = time.monotonic(), []
        for event in events:
            ticket = self._tickets.get(event.request_id)
            if ticket is None:
                continue
            self._note(ticket, event, began=began, now=now)
            text = ticket.text.taken(end=event.reason is not None)
            stop = event.completion.stop if event.completion is not None else None
            piece = Piece(ticket.number, text, event.sampled, event.reason, event.prompt, event.cached, stop)
            deliveries.append((ticket.answering, piece))
            if event.reason is not None:
                self._end(ticket, event.reason)
                self._rate.count(now)
        if deliveries:
            _post(deliveries)

    def _note(self, ticket: Ticket, event: Event, *, began: float, now: float) -> None:
        """Measure what a step that `began` did for an answer."""
        times, metrics = ticket.times, self.metrics
        if not times.started:
            times.started = began
            metrics.count("prompt_tokens", ticket.prompt_tokens)
            metrics.count("prefix_cache_queries", ticket.prompt_tokens)
        metrics.count("prefix_cache_hits", event.cached)
        written = len(event.tokens) + (event.reason == "token")
        metrics.count("generation_tokens", written)
        if written:  # a token that ends the answer at once is its first one
            if times.first_token:
                for _ in range(written):
                    metrics.token_gap((now - times.last_token) / written)
            times.first_token = times.first_token or now
            times.last_token = now

    def _drop(self, answering: Answering, error: ApiError | None) -> None:
        """Abort what has not ended of these answers, and say why if somebody listens."""
        for ticket in answering.tickets:
            if ticket.reason is None:
                if ticket.engine_id >= 0:
                    self.engine.abort(ticket.engine_id)
                self._end(ticket, "aborted")
        if error is not None:
            _post([(answering, error)])

    def _drop_late(self) -> None:
        now = time.monotonic()
        late = [ticket for ticket in self._tickets.values() if ticket.answering.deadline < now]
        self._fail(late, ApiError(504, "the answer took longer than this server allows", code="timeout"))

    def _refuse_waiting(self) -> None:
        """Refuse the requests of which nothing has begun."""
        waiting = set(self.engine.waiting)
        self._fail(
            [
                ticket
                for ticket in self._tickets.values()
                if all(one.engine_id in waiting for one in ticket.answering.tickets)
            ],
            going(),
        )

    def _fail(self, tickets: Sequence[Ticket], error: ApiError) -> None:
        for answering in {id(ticket.answering): ticket.answering for ticket in tickets}.values():
            self._drop(answering, error)

    def _end(self, ticket: Ticket, reason: Reason) -> None:
        ticket.reason, ticket.request = reason, None
        self._tickets.pop(ticket.engine_id, None)
        self.metrics.ended(ticket.times.span(time.monotonic()), reason=reason)


class Rate:
    """How many answers end in a second, from the last ones."""

    def __init__(self) -> None:
        self._ends: list[float] = []

    def count(self, now: float) -> None:
        """Note that an answer has ended."""
        self._ends = [*self._ends[-63:], now]

    def seconds(self, answers: int) -> int:
        """When so many will have ended: 1 to 60 seconds."""
        if len(self._ends) < 2 or self._ends[-1] == self._ends[0]:
            return 1
        each = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return min(60, max(1, round(answers * each)))


def _post(deliveries: Sequence[tuple[Answering, Piece | ApiError]]) -> None:
    """Put each item into the queue of its answers; all have the same event loop."""

    def put() -> None:
        for answering, item in deliveries:
            answering.queue.put_nowait(item)

    try:
        deliveries[0][0].loop.call_soon_threadsafe(put)
    except RuntimeError:  # the loop has ended, and with it everybody who waits
        log.debug("answers came after the end of the server")

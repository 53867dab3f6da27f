"""The inference engine: it writes and scores many requests at once, and computes nothing twice.

    ids = [engine.submit(request) for request in requests]
    while engine.busy:
        for event in engine.step():
            ...

Evaluation submits everything and steps until the engine is idle; a server submits, steps and aborts as it goes.
What all requests of an idle engine begin with (the fixed examples of few-shot prompts) is computed once, and all rows
read it where it is. What some have in common (queries after the same examples, the choices of one question) is copied
from row to row. Each image is encoded once.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch

from mm1.generate.admission import admission_order, next_wave
from mm1.generate.decode_step import DecodeStep, step_for
from mm1.generate.prefix_cache import PrefixCache, prefill_prefix
from mm1.generate.prefix_index import MIN_SHARED
from mm1.generate.prompt import Features, Prompt
from mm1.generate.prompt_content import common_prefix
from mm1.generate.prompt_lookup import PromptLookup
from mm1.generate.request import ActiveRequest, Completion, EngineRequest, Event, Score
from mm1.generate.sampling import Decoding, sample_tokens
from mm1.model.mllm import MLLM

POSITIONS_PER_READING = 128
"""Positions of a prompt whose logits are computed at a time: those of a whole prompt can take a gigabyte."""


class Engine:
    """Continues and scores prompts, up to `rows` at a time; what was computed for one request serves later ones.

    Requests may be submitted and aborted at any time between two steps, and each gets what it would get alone. This
    holds up to the last bits of fp32: sums over positions depend on the batch in their order, so two tokens whose
    logits agree to seven digits can swap. With experts of limited capacity (`SparseConfig`) a position's result
    depends on its neighbours, and nothing here is exact.

    Cache sizes: requests submitted to an idle engine get a cache with their common prefix and room for the longest,
    or the last cache if it serves. Requests that come while others run join at the next step. One that needs more
    positions makes the cache grow, and one that doesn't begin with the shared prefix makes every row hold the rest
    of that prefix itself; both only copy keys and values between two steps. The cache then needs as much memory as
    if all had been submitted together, and for a moment one more layer's keys. So no request waits for anything but
    a free row.
    """

    def __init__(
        self, model: MLLM, *, rows: int = 32, features: Features | None = None, decode: DecodeStep | None = None
    ):
        """`decode` does the decoding steps; by default in the way of the model's device."""
        self.model, self.rows, self.decode = model, rows, decode or step_for(model)
        self.features = features or Features(model)
        self.prefix_cache: PrefixCache | None = None
        self.prefilled = 0  # positions of shared prefixes that went through the decoder
        self._numbers = itertools.count()
        self._requests: dict[int, ActiveRequest] = {}  # all that have not ended
        self._arrivals: list[ActiveRequest] = []  # submitted since the last step
        self._waiting: list[ActiveRequest] = []  # for a free row
        self._events: list[Event] = []  # not yet returned by a step
        self._lookup = PromptLookup()

    @property
    def busy(self) -> bool:
        """Whether a step has something to do or to report."""
        return bool(self._requests or self._events)

    @property
    def waiting(self) -> list[int]:
        """The requests that have no row yet, in the order in which they will get one."""
        return [active.number for active in (*self._waiting, *self._arrivals)]

    def submit(self, request: EngineRequest) -> int:
        """The id of the request, which the next steps work on.

        Raises:
            ValueError: an empty prompt or continuation, or images that don't fit the image tokens.
        """
        active = ActiveRequest(next(self._numbers), request, self.model.config)
        self._requests[active.number] = active
        if active.wants_nothing:
            active.end("length")
            self._finish(active)
            self._events.append(active.event())
        else:
            self._arrivals.append(active)
        return active.number

    def abort(self, request_id: int) -> None:
        """End a request, if it has not ended. Its row is free at once, and the next step reports the end."""
        active = self._requests.get(request_id)
        if active is not None:
            active.end("aborted")
            self._finish(active)
            self._arrivals = [other for other in self._arrivals if other is not active]
            self._waiting = [other for other in self._waiting if other is not active]
            self._events.append(active.event())

    def step(self) -> list[Event]:
        """What happened in one pass of the model: a prefill of waiting requests if rows are free, else a decoding step.

        If it raises an error, all requests are gone, and the engine is idle.
        """
        try:
            self._join_arrivals()
            if self.prefix_cache is not None:
                self._pass(self.prefix_cache)
        except BaseException:  # a pass that was cut short leaves rows that hold less than they say
            self._forget()
            raise
        events, self._events = self._events, []
        return events

    def generate(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding | Sequence[Decoding],
        *,
        done: Callable[[int, Completion], None] = lambda number, completion: None,
    ) -> list[Completion]:
        """The completion of each prompt; prompt number i takes its random numbers from stream i.

        `decoding` is for all prompts, or one for each. `done` is called with the number and the completion of each
        prompt as soon as it is finished.

        Raises:
            ValueError: an empty prompt, or images that don't fit the image tokens.
        """
        decodings = [decoding] * len(prompts) if isinstance(decoding, Decoding) else decoding
        requests = [
            EngineRequest(prompt, one, stream)
            for stream, (prompt, one) in enumerate(zip(prompts, decodings, strict=True))
        ]

        def finished(number: int, event: Event) -> None:
            if event.completion is not None:
                done(number, event.completion)

        return [event.completion for event in self._run(requests, done=finished) if event.completion is not None]

    def score(
        self,
        pairs: Sequence[tuple[Prompt, Sequence[int]]],
        *,
        done: Callable[[int, Score], None] = lambda number, score: None,
    ) -> list[Score]:
        """How likely each continuation is after its prompt; `done` is called with each pair's number and score.

        Raises:
            ValueError: an empty prompt or continuation, or images that don't fit the image tokens.
        """
        requests = [EngineRequest(prompt, continuation=continuation) for prompt, continuation in pairs]

        def finished(number: int, event: Event) -> None:
            if event.score is not None:
                done(number, event.score)

        return [event.score for event in self._run(requests, done=finished) if event.score is not None]

    def _run(self, requests: Sequence[EngineRequest], *, done: Callable[[int, Event], None]) -> list[Event]:
        """The last event of each request. The engine must be idle: events of other requests would be lost."""
        assert not self.busy
        order: dict[int, int] = {}
        last: dict[int, Event] = {}
        try:
            for number, request in enumerate(requests):
                order[self.submit(request)] = number
            while self.busy:
                for event in self.step():
                    if event.reason is not None:
                        last[order[event.request_id]] = event
                        done(order[event.request_id], event)
        except BaseException:
            for request_id in order:
                self.abort(request_id)
            self._events.clear()
            raise
        return [last[number] for number in range(len(requests))]

    def _finish(self, active: ActiveRequest) -> None:
        """Drop a request that has ended, and free its row if it has one."""
        del self._requests[active.number]
        self._lookup.forget(active.number)
        if self.prefix_cache is not None and active.number in self.prefix_cache.owners:
            self.prefix_cache.release(active.number)

    def _join_arrivals(self) -> None:
        """Let the requests that were submitted since the last step wait for rows of a cache with room for them."""
        arrivals, self._arrivals = self._arrivals, []
        if arrivals:
            prefix_cache = self._cache_for(arrivals, idle=len(arrivals) == len(self._requests))
            self._waiting += admission_order(arrivals, prefix_cache.prefix_length)

    def _cache_for(self, arrivals: Sequence[ActiveRequest], *, idle: bool) -> PrefixCache:
        """The last cache with room for the arrivals, or a new one if the engine is idle and that shares more."""
        first, prefix_cache = arrivals[0].known, self.prefix_cache
        shared = first.whole(min(common_prefix(first.content, other.known.content) for other in arrivals))
        shared = min(shared, *(len(active.known) - active.outputs for active in arrivals))
        longest = max(active.max_length for active in arrivals)
        if prefix_cache is not None:
            kept = min(shared, common_prefix(prefix_cache.prefix.content, first.content)) if prefix_cache.prefix else 0
            more = len(arrivals) > 2 and shared >= prefix_cache.prefix_length + MIN_SHARED
            if not idle or (kept == prefix_cache.prefix_length and not more):
                prefix_cache.fit(longest, prefix_length=kept)
                return prefix_cache
        prefix = None
        if len(arrivals) > 2 and shared >= MIN_SHARED:
            prefix = prefill_prefix(self.model, first, length=shared, features=self.features)
            self.prefilled += shared
        self.decode.forget()
        self.prefix_cache = prefix_cache = None  # frees its memory before the next one takes more
        positions = longest - (shared if prefix else 0)
        self.prefix_cache = PrefixCache(
            self.model,
            rows=self.rows,
            positions=positions,
            features=self.features,
            prefix=prefix,
            decode=self.decode,
        )
        return self.prefix_cache

    def _pass(self, prefix_cache: PrefixCache) -> None:
        """The next pass of the model, if there is anything to do."""
        if self._waiting and prefix_cache.free:
            self._admit(next_wave(self._waiting, prefix_cache, most=prefix_cache.free), prefix_cache)
        elif self._requests:
            self._decode(prefix_cache)

    def _forget(self) -> None:
        """Drop all requests and what rows hold."""
        self.prefix_cache, self._arrivals, self._waiting, self._lookup = None, [], [], PromptLookup()
        self._requests.clear()
        self._events.clear()

    def _admit(self, wave: Sequence[ActiveRequest], prefix_cache: PrefixCache) -> None:
        """Give rows to waiting requests: scores are then complete, the others have their first token."""
        numbers = {active.number for active in wave}
        self._waiting = [active for active in self._waiting if active.number not in numbers]
        outputs = [active.outputs for active in wave]
        hidden_AD = prefix_cache.admit(
            [active.known for active in wave], [active.number for active in wave], outputs=outputs
        )
        written, last = [], []
        for active, reused in zip(wave, prefix_cache.reused, strict=True):
            active.cached = reused if active.cached is None else active.cached
        for active, hidden_TD in zip(wave, hidden_AD.split(outputs), strict=True):
            if active.continuation is None:
                self._read_prompt(active, hidden_TD[:-1])
                if active.decoding.max_tokens < 1:  # only the prompt was to be read
                    active.end("length")
                    self._finish(active)
                    continue
                written.append(active)
                last.append(hidden_TD[-1:])
            else:
                active.accept_score(self._logits(hidden_TD))
                self._finish(active)
        if written:
            self._accept_tokens(written, self._logits(torch.cat(last)))
        self._events += [active.event() for active in wave]

    def _read_prompt(self, active: ActiveRequest, hidden_TD: torch.Tensor) -> None:
        """Report the prompt's next tokens if the request asks for them."""
        if active.reading is not None:
            for part_TD in hidden_TD.split(POSITIONS_PER_READING):
                active.reading.read(self._logits(part_TD))

    def _decode(self, prefix_cache: PrefixCache) -> None:
        """Continue all rows by a token, or by several where the draft tokens are what the model writes."""
        running = {number: self._requests[number] for number in prefix_cache.owners if number is not None}
        drafts = self._lookup.propose(
            {number: np.append(prefix_cache.contents(number), active.next_token) for number, active in running.items()},
            most={number: active.max_draft for number, active in running.items()},
        )
        numbers, logits_BTV = prefix_cache.step(
            {number: [active.next_token, *drafts[number]] for number, active in running.items()}
        )
        ongoing, accepted = list(enumerate(numbers)), 0
        while ongoing:
            rows = [row for row, _ in ongoing]
            self._accept_tokens([running[number] for _, number in ongoing], logits_BTV[rows, accepted])
            ahead = []
            for row, number in ongoing:
                draft, active = drafts[number], running[number]
                if active.reason is not None:
                    continue
                if draft[accepted : accepted + 1] == [active.next_token]:
                    ahead.append((row, number))
                else:
                    self._lookup.learn(number, drafted=len(draft), accepted=accepted)
                    prefix_cache.roll_back(number, len(draft) - accepted)
            ongoing, accepted = ahead, accepted + 1
        self._events += [active.event() for active in running.values()]

    def _accept_tokens(self, actives: Sequence[ActiveRequest], logits_BV: torch.Tensor) -> None:
        """Give each request its next token, and finish those that it ends."""
        sampled = sample_tokens(
            logits_BV,
            [active.decoding for active in actives],
            generators=[active.generator for active in actives],
            image_token=self.model.config.image_token,
            written=[active.completion.tokens for active in actives],
        )
        for active, one in zip(actives, sampled, strict=True):
            active.accept(one)
            if active.reason is not None:
                self._finish(active)

    def _logits(self, hidden_BD: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self.model.decoder.logits(hidden_BD).float()

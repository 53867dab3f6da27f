"""The way of an answer to its client: whole, or as server-sent events; it ends when the client goes."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from mm1.serve.answers import Choice, Form, Usage
from mm1.serve.errors import ApiError
from mm1.serve.guard import Receive, Scope, Send
from mm1.serve.scheduler import Answering, Piece


def to_json(content: Any) -> bytes:
    """The content as compact JSON."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


@dataclass(slots=True)
class Reply:
    """One request's answers on their way."""

    answering: Answering
    form: Form
    usage: Usage
    noted: dict[str, Any]  # for the access log

    async def whole(self, receive: Receive) -> Response:
        """All answers at once.

        Raises:
            ApiError: they cannot be completed.
        """
        choices = [Choice() for _ in self.answering.tickets]
        watcher = asyncio.create_task(_close_when_gone(receive, self.answering))
        try:
            async for piece in self.answering.pieces():
                choices[piece.number].add(piece)
                self.usage.count(piece)
        finally:
            self._end(watcher)
        return Response(to_json(self.form.whole(choices, self.usage)), media_type="application/json")

    async def stream(self, receive: Receive, *, usage: bool) -> Response:
        """The answers as they are written, once the first piece is there: until then an error has a status of its own.

        Raises:
            ApiError: nothing can be written.
        """
        watcher = asyncio.create_task(_close_when_gone(receive, self.answering))
        pieces = self.answering.pieces()
        try:
            first = await anext(pieces)
        except BaseException:
            self._end(watcher)
            raise
        chunks = self._chunks(first, pieces, usage=usage)
        return EventStream(chunks, end=lambda: self._end(watcher), deadline=self.answering.deadline)

    def _end(self, watcher: asyncio.Task) -> None:
        """Let go of what is not complete, and note what there was."""
        watcher.cancel()
        tickets = self.answering.tickets
        self.noted |= {"prompt_tokens": self.usage.prompt, "completion_tokens": self.usage.completion}
        self.noted |= {"cached_tokens": self.usage.cached, "reasons": [one.reason or "aborted" for one in tickets]}
        self.answering.close()

    async def _chunks(self, first: Piece, rest: AsyncIterator[Piece], *, usage: bool) -> AsyncIterator[bytes]:
        opened: set[int] = set()
        try:
            async for piece in _chained(first, rest):
                self.usage.count(piece)
                events: list[dict[str, Any]] = []
                if piece.number not in opened and (piece.sampled or piece.reason is not None):
                    opened.add(piece.number)
                    if (opening := self.form.opening(piece)) is not None:
                        events.append(opening)
                if piece.text or piece.sampled or piece.reason is not None:
                    events.append(self.form.chunk(piece))
                if events:
                    yield b"".join(map(_event, events))
        except ApiError as error:
            self.noted["error"] = error.code
            yield _event(error.body)
            return
        if usage:
            yield _event(self.form.usage_chunk(self.usage))
        yield b"data: [DONE]\n\n"


class EventStream(Response):
    """Server-sent events. `end` is called when all is sent, the client is gone, or it reads too slowly."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], *, end: Callable[[], None], deadline: float):
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._end, self._deadline = events, end, deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with asyncio.timeout(self._deadline + GRACE - time.monotonic()):
                async for event in self._events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._end()


GRACE = 10.0
"""Seconds after its deadline in which a stream can still tell its client that it is late."""


async def _chained(first: Piece, rest: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    yield first
    async for piece in rest:
        yield piece


async def _close_when_gone(receive: Callable[[], Awaitable[Any]], answering: Answering) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    answering.close()


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + to_json(content) + b"\n\n"

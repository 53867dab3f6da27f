"""Answers in OpenAI's form: whole objects, and the chunks of a stream."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mm1.generate.request import Reason
from mm1.generate.sampling import Sampled
from mm1.serve.scheduler import Piece
from mm1.serve.token_names import TokenNames

FINISH: dict[str, str] = {"length": "length", "aborted": "length"}
"""How a reason of the engine is called; all others are `stop`."""


@dataclass(slots=True)
class Usage:
    """How many tokens a request had and got: its prompts count once, however many answers each one has."""

    prompt: int
    choices: int = 1  # answers to each prompt
    completion: int = 0
    _cached: dict[int, int] = field(default_factory=dict)  # by the number of the answer

    @property
    def cached(self) -> int:
        """Positions of the prompts that were known before: of each, what the answer that computed most of it found."""
        least: dict[int, int] = {}
        for number, cached in self._cached.items():
            prompt = number // self.choices
            least[prompt] = min(cached, least.get(prompt, cached))
        return sum(least.values())

    def count(self, piece: Piece) -> None:
        """Count the tokens of a piece; the one that ends an answer is a token too."""
        self._cached[piece.number] = self._cached.get(piece.number, 0) + piece.cached
        self.completion += len(piece.sampled) + (piece.stop is not None)

    @property
    def json(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


@dataclass(slots=True)
class Choice:
    """One complete answer; `stop` is the token that ended it."""

    text: str = ""
    sampled: list[Sampled] = field(default_factory=list)
    reason: Reason = "length"
    prompt: tuple[Sampled | None, ...] = ()
    stop: Sampled | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.stop = piece.stop or self.stop
        self.prompt = piece.prompt or self.prompt
        self.sampled += piece.sampled
        self.reason = piece.reason or self.reason


class Form(Protocol):
    """How answers of one route look."""

    def opening(self, piece: Piece) -> dict[str, Any] | None:
        """The chunk before the first piece of an answer, if there is one."""

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """A piece as a chunk of a stream."""

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        """The last chunk of a stream that has the usage."""

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        """The answer to a request that isn't streamed."""


@dataclass(slots=True)
class Head:
    """What every object of one answer has."""

    prefix: str
    model: str
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"

    def json(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


@dataclass(slots=True)
class ChatForm:
    """Answers of /v1/chat/completions."""

    head: Head
    names: TokenNames
    logprobs: bool
    usage_in_stream: bool

    def opening(self, piece: Piece) -> dict[str, Any]:
        return self._chunk(piece.number, {"role": "assistant", "content": ""}, None, None)

    def chunk(self, piece: Piece) -> dict[str, Any]:
        delta = {"content": piece.text} if piece.text else {}
        return self._chunk(piece.number, delta, piece.sampled, _finish(piece.reason))

    def _chunk(
        self, number: int, delta: dict[str, Any], sampled: Sequence[Sampled] | None, finish: str | None
    ) -> dict[str, Any]:
        logprobs = self._logprobs(sampled) if self.logprobs and sampled else None
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._with_usage(self.head.json("chat.completion.chunk") | {"choices": [choice]}, None)

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return self._with_usage(self.head.json("chat.completion.chunk") | {"choices": []}, usage)

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        listed = [
            {
                "index": number,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": self._logprobs(choice.sampled) if self.logprobs else None,
                "finish_reason": _finish(choice.reason),
            }
            for number, choice in enumerate(choices)
        ]
        return self.head.json("chat.completion") | {"choices": listed, "usage": usage.json}

    def _with_usage(self, chunk: dict[str, Any], usage: Usage | None) -> dict[str, Any]:
        return chunk | {"usage": usage and usage.json} if self.usage_in_stream else chunk

    def _logprobs(self, sampled: Sequence[Sampled]) -> dict[str, Any]:
        content = [
            self._token(one.token, one.log_probability)
            | {"top_logprobs": [self._token(token, value) for token, value in one.alternatives]}
            for one in sampled
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, value: float) -> dict[str, Any]:
        return {"token": self.names.text(token), "logprob": finite(value), "bytes": list(self.names.bytes(token))}


@dataclass(slots=True)
class Echo:
    """A prompt that the answer repeats."""

    text: str
    tokens: Sequence[int] = ()


@dataclass(slots=True)
class CompletionForm:
    """Answers of /v1/completions. `echoes` are the prompts to be repeated, one for each answer, or none.

    Likelihoods include the token that ended an answer, as in vLLM: harnesses ask for one token after a prompt and drop
    the last entry, which must be there also where that token is an end.
    """

    head: Head
    names: TokenNames
    logprobs: bool
    usage_in_stream: bool
    echoes: list[Echo] = field(default_factory=list)
    _offsets: dict[int, int] = field(default_factory=dict)

    def opening(self, piece: Piece) -> dict[str, Any] | None:
        if not self.echoes:
            return None
        echo = self.echoes[piece.number]
        return self._chunk(piece.number, echo.text, self._logprobs(piece.number, echo.tokens, piece.prompt), None)

    def chunk(self, piece: Piece) -> dict[str, Any]:
        sampled = _with_stop(piece.sampled, piece.stop)
        logprobs = self._logprobs(piece.number, [one.token for one in sampled], sampled)
        return self._chunk(piece.number, piece.text, logprobs, _finish(piece.reason))

    def _chunk(self, number: int, text: str, logprobs: dict | None, finish: str | None) -> dict[str, Any]:
        choice = {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return self._with_usage(self.head.json("text_completion") | {"choices": [choice]}, None)

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return self._with_usage(self.head.json("text_completion") | {"choices": []}, usage)

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        listed = []
        for number, choice in enumerate(choices):
            echo = self.echoes[number] if self.echoes else Echo("")
            sampled = _with_stop(choice.sampled, choice.stop)
            tokens = [*echo.tokens, *(one.token for one in sampled)]
            logprobs = self._logprobs(number, tokens, [*choice.prompt, *sampled])
            listed.append(
                {
                    "index": number,
                    "text": echo.text + choice.text,
                    "logprobs": logprobs,
                    "finish_reason": _finish(choice.reason),
                }
            )
        return self.head.json("text_completion") | {"choices": listed, "usage": usage.json}

    def _with_usage(self, chunk: dict[str, Any], usage: Usage | None) -> dict[str, Any]:
        return chunk | {"usage": usage and usage.json} if self.usage_in_stream else chunk

    def _logprobs(self, number: int, tokens: Sequence[int], sampled: Sequence[Sampled | None]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        names, offsets, at = [self.names.text(token) for token in tokens], [], self._offsets.get(number, 0)
        for token in tokens:
            offsets.append(at)
            at += self.names.characters(token)
        self._offsets[number] = at
        return {
            "tokens": names,
            "token_logprobs": [None if one is None else finite(one.log_probability) for one in sampled],
            "top_logprobs": [None if one is None else self._alternatives(one) for one in sampled],
            "text_offset": offsets,
        }

    def _alternatives(self, one: Sampled) -> dict[str, float]:
        """The likeliest tokens by their text; of two with the same text the likelier."""
        named: dict[str, float] = {}
        for token, value in one.alternatives:
            named.setdefault(self.names.text(token), finite(value))
        return named


def finite(value: float) -> float:
    """A log-probability that JSON can hold."""
    return max(value, -9999.0)


def _with_stop(sampled: Sequence[Sampled], stop: Sampled | None) -> list[Sampled]:
    return [*sampled, stop] if stop is not None else list(sampled)


def _finish(reason: Reason | None) -> str | None:
    return None if reason is None else FINISH.get(reason, "stop")

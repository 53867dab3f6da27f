"""A request to the engine, its state until it ends, and what comes back."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from mm1.config.model import ModelConfig
from mm1.generate.prompt import Prompt
from mm1.generate.prompt_content import PromptContent
from mm1.generate.sampling import (
    Decoding,
    Sampled,
    likeliest_tokens,
    random_stream,
    without_image_token,
)

Reason = Literal["token", "text", "choice", "length", "aborted"]
"""Why a request ended: a stop token, a stop string, no choice that goes on, its full length, or an abort."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A prompt to continue or, with a `continuation`, a prompt and the tokens to score after it.

    Sampling takes its random numbers from stream number `stream` of `decoding.seed`, whatever else the engine does.
    What was computed for another `salt` is not used. With `prompt_alternatives` the tokens of the prompt are reported
    too, each with its log-probability after those before it, and with so many of the likeliest.
    """

    prompt: Prompt
    decoding: Decoding = field(default_factory=Decoding)
    stream: int = 0
    continuation: Sequence[int] | None = None
    salt: str = ""
    prompt_alternatives: int | None = None


@dataclass(slots=True)
class Completion:
    """What the model wrote. It includes a stop string, but not a stop token. `sampled` says more of each token, and
    `stop` of the stop token."""

    tokens: list[int] = field(default_factory=list)
    log_probability: float = 0.0  # of all selected tokens, including the stop token, in nats
    reason: Reason = "length"
    sampled: list[Sampled] = field(default_factory=list)
    stop: Sampled | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a continuation is."""

    log_probability: float  # nats, summed over its tokens
    tokens: int
    greedy: bool  # whether each token is the likeliest, so that greedy decoding would write this continuation


@dataclass(frozen=True, slots=True)
class Event:
    """What a step did for one request: the tokens it wrote and, if the request ended, the reason and the result."""

    request_id: int
    tokens: tuple[int, ...] = ()
    reason: Reason | None = None
    completion: Completion | None = None
    score: Score | None = None
    sampled: tuple[Sampled, ...] = ()  # of the tokens, with their log-probabilities
    prompt: tuple[Sampled | None, ...] = ()  # of the prompt's tokens, if asked for; None: of the first, and of images
    cached: int = 0  # positions of the prompt that did not have to be computed, in the first event


class PromptReading:
    """How likely each of a prompt's tokens is after those before it.

    `sampled` says it of the tokens that were read: of the first and of image tokens it is None.
    """

    def __init__(self, tokens: Sequence[int], image_token: int, alternatives: int):
        self._tokens, self._image_token, self._alternatives = tokens, image_token, alternatives
        self.sampled: list[Sampled | None] = [None]

    @property
    def left(self) -> int:
        """Positions whose logits are still needed, that of the last token counted, after which the model writes."""
        return len(self._tokens) - len(self.sampled) + 1

    def read(self, logits_TV: torch.Tensor) -> None:
        """Read the next tokens by the logits before each of them."""
        expected = self._tokens[len(self.sampled) : len(self.sampled) + len(logits_TV)]
        total_T = logits_TV.logsumexp(-1)
        allowed_TV = without_image_token(logits_TV, self._image_token)
        likeliest = likeliest_tokens(allowed_TV, total_T, count=self._alternatives)
        for at, token in enumerate(expected):
            one = Sampled(token, float(logits_TV[at, token] - total_T[at]), likeliest[at])
            self.sampled.append(None if token == self._image_token else one)


def salt_number(salt: str) -> int:
    """A number for a salt: 0 for none."""
    return int.from_bytes(hashlib.sha256(salt.encode()).digest()[:7]) if salt else 0


class ActiveRequest:
    """A submitted request and how far it is. `reason` is None until it ends.

    Raises:
        ValueError: an empty prompt or continuation, or images that don't fit the image tokens.
    """

    def __init__(self, number: int, request: EngineRequest, config: ModelConfig):
        self.number, self.decoding, self.continuation = number, request.decoding, request.continuation
        self.prompt = request.prompt
        self.max_length = len(self.prompt.tokens) + self.decoding.max_tokens
        if self.continuation is not None:
            if not len(self.prompt.tokens) or not len(self.continuation):
                raise ValueError(
                    "a prompt or a continuation is empty; give each one token (such as the one that starts text)"
                )
            # nothing attends to the last token
            self.prompt = replace(self.prompt, tokens=[*self.prompt.tokens, *self.continuation[:-1]])
            self.max_length = len(self.prompt.tokens)
        self.known = PromptContent.of(self.prompt, config, salt=salt_number(request.salt))
        self.reading: PromptReading | None = None
        if request.prompt_alternatives is not None:
            self.reading = PromptReading(self.prompt.tokens, config.image_token, request.prompt_alternatives)
        self.cached: int | None = None  # first positions that did not have to be computed, once it has begun
        self.generator = random_stream(self.decoding.seed, request.stream)
        self.completion = Completion()
        self.score: Score | None = None
        self.reason: Reason | None = None
        self.next_token = -1  # the last token written, which is not yet in the cache
        self._image_token, self._reported = config.image_token, 0

    @property
    def outputs(self) -> int:
        """How many last positions of the prompt's logits are needed."""
        if self.continuation is not None:
            return len(self.continuation)
        return 1 if self.reading is None else self.reading.left

    @property
    def wants_nothing(self) -> bool:
        """Whether there is nothing to compute: no token to write, and neither the prompt nor a continuation to read."""
        return self.continuation is None and self.reading is None and self.decoding.max_tokens < 1

    @property
    def max_draft(self) -> int:
        """How many draft tokens can be useful: the step itself writes one more."""
        return self.decoding.max_tokens - len(self.completion.tokens) - 1

    def accept(self, sampled: Sampled) -> None:
        """Add the next token, which may end the request."""
        completion, decoding, token = self.completion, self.decoding, sampled.token
        completion.log_probability += sampled.log_probability
        if token in decoding.stop_tokens:
            completion.stop = sampled
            self.end("token")
            return
        completion.tokens.append(token)
        completion.sampled.append(sampled)
        self.next_token = token
        if decoding.stopped is not None and decoding.stopped(completion.tokens):
            self.end("text")
        elif decoding.constraint is not None and decoding.constraint.ended(completion.tokens):
            self.end("choice")
        elif len(completion.tokens) >= decoding.max_tokens:
            self.end("length")

    def accept_score(self, logits_TV: torch.Tensor) -> None:
        """Compute the score from the logits before each token of the continuation, which ends the request."""
        answer_T = torch.tensor(self.continuation, device=logits_TV.device)
        log_probability_T = logits_TV.log_softmax(-1).gather(-1, answer_T[:, None])[:, 0]
        greedy = bool((without_image_token(logits_TV, self._image_token).argmax(-1) == answer_T).all())
        self.score = Score(float(log_probability_T.sum()), len(answer_T), greedy)
        self.end("length")

    def end(self, reason: Reason) -> None:
        """End the request for this reason."""
        self.reason = self.completion.reason = reason

    def event(self) -> Event:
        """What is new since the last event."""
        new = slice(self._reported, None)
        tokens, sampled = tuple(self.completion.tokens[new]), tuple(self.completion.sampled[new])
        self._reported = len(self.completion.tokens)
        written = self.completion if self.reason and self.continuation is None else None
        prompt: tuple[Sampled | None, ...] = ()
        if self.reading is not None and self.reading.left == 1 and not new.start and (tokens or self.reason):
            prompt = tuple(self.reading.sampled)
        cached, self.cached = self.cached or 0, 0
        return Event(self.number, tokens, self.reason, written, self.score, sampled, prompt, cached)

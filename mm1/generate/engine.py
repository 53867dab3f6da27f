"""Text from a trained model: an engine that writes and scores many prompts at once, and computes nothing twice.

Prompts wait in a queue, and one that ends is replaced at once. What all prompts of a call begin with (a few-shot
prompt's fixed shots) is computed once and read in place; what some have in common (two queries after the same
shots, the choices of one question) is taken over from row to row; a picture is encoded once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from mm1.generate.prompt import Features, Prompt, common_prefix, content, whole_images
from mm1.generate.prompt_lookup import Guesses
from mm1.generate.sampling import Decoding, choose, stream, writable
from mm1.generate.session import LEAST, Session, begun
from mm1.model.mllm import MLLM

PLACES_AT_ONCE = 8192
"""Places of one pass over new prompts, unless a single prompt has more."""


Done = Callable[[int], None]


@dataclass(slots=True)
class Completion:
    """What the model wrote. A stop token is left out; a stop string is not."""

    tokens: list[int] = field(default_factory=list)
    log_probability: float = 0.0  # of all choices, the stop token's too, in nats
    reason: Literal["token", "text", "choice", "length"] = "length"


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a continuation is."""

    log_probability: float  # nats, summed over its tokens
    tokens: int
    greedy: bool  # every token is the likeliest: greedy decoding would write just this


@dataclass(slots=True)
class _Request:
    """A prompt on its way: `content` says what stands at its places, `wanted` how many last ones need logits."""

    number: int
    prompt: Prompt
    content: np.ndarray
    wanted: int = 1
    tokens: int = 0  # written at most


class Engine:
    """Answers to prompts, up to `rows` at once; what one call computed, the next may use.

    Attention to places in another order of sums differs in the last bits of fp32, so two tokens whose logits agree
    to seven digits may change places between one batch and another. Experts with a capacity (`SparseConfig`) let
    what a place gets depend on its neighbours: with them nothing here is exact.
    """

    def __init__(self, model: MLLM, *, rows: int = 32, features: Features | None = None):
        self.model, self.rows = model, rows
        self.features = features or Features(model)
        self.session: Session | None = None
        self.prefilled = 0  # places of prefixes that went through the decoder

    def generate(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding | Sequence[Decoding],
        *,
        done: Done = lambda number: None,
    ) -> list[Completion]:
        """A completion of every prompt. `decoding` is for all or one for each; `done` hears of each that ends.

        Raises:
            ValueError: a prompt whose images don't fill their places.
        """
        decodings = [decoding] * len(prompts) if isinstance(decoding, Decoding) else list(decoding)
        writing = _Writing(decodings, image_token=self.model.config.image_token)
        waiting = self._requests(prompts)
        for request in waiting:
            request.tokens = decodings[request.number].tokens
        waiting = self._ready([request for request in waiting if request.tokens])
        while waiting or writing.last:
            assert self.session is not None
            while waiting and self.session.free:
                wave = self._wave(waiting)
                owners = [request.number for request in wave]
                hidden_BD = self.session.admit([request.prompt for request in wave], owners)
                self._take(writing, owners, self._logits(hidden_BD), done=done)
            if writing.last:
                self._continue(writing, done=done)
        return writing.completions

    def _take(self, writing: "_Writing", owners: Sequence[int], logits_BV: torch.Tensor, *, done: Done) -> None:
        assert self.session is not None
        for owner in writing.take(owners, logits_BV):
            self.session.release(owner)
            done(owner)

    def _continue(self, writing: "_Writing", *, done: Done) -> None:
        """All rows a token further, or several where what was guessed is what comes."""
        session, guesses = self.session, writing.guesses
        assert session is not None
        guessed = guesses.next(
            {owner: np.append(session.held(owner), token) for owner, token in writing.last.items()},
            most={owner: writing.room(owner) for owner in writing.last},
        )
        owners, logits_BTV = session.step({owner: [token, *guessed[owner]] for owner, token in writing.last.items()})
        right = 0
        going = list(enumerate(owners))
        while going:
            rows = [row for row, _ in going]
            self._take(writing, [owner for _, owner in going], logits_BTV[rows, right], done=done)
            ahead = []
            for row, owner in going:
                if owner not in writing.last:
                    continue
                if guessed[owner][right : right + 1] == [writing.last[owner]]:
                    ahead.append((row, owner))
                else:
                    guesses.learn(owner, guessed=len(guessed[owner]), right=right)
                    session.take_back(owner, len(guessed[owner]) - right)
            going, right = ahead, right + 1

    def score(self, pairs: Sequence[tuple[Prompt, Sequence[int]]]) -> list[Score]:
        """How likely each continuation is after its prompt; prompts in common are computed once.

        Raises:
            ValueError: an empty prompt or continuation, or images that don't fill their places.
        """
        if any(not len(prompt.tokens) or not len(continuation) for prompt, continuation in pairs):
            raise ValueError(
                "a prompt or a continuation is empty; give each one token (such as the one that starts text)"
            )
        # the last token's own keys are of no use
        whole = [Prompt([*prompt.tokens, *continuation[:-1]], prompt.images) for prompt, continuation in pairs]
        waiting = self._requests(whole)
        for request in waiting:
            request.wanted = len(pairs[request.number][1])
        waiting = self._ready(waiting)
        scores: list[Score | None] = [None] * len(pairs)
        while waiting:
            assert self.session is not None
            wave = self._wave(waiting)
            numbers, wanted = [request.number for request in wave], [request.wanted for request in wave]
            hidden_AD = self.session.admit([request.prompt for request in wave], numbers, wanted=wanted)
            for number, hidden_TD in zip(numbers, hidden_AD.split(wanted), strict=True):
                scores[number] = _score(
                    self._logits(hidden_TD), pairs[number][1], image_token=self.model.config.image_token
                )
                self.session.release(number)
        return [one for one in scores if one is not None]

    def _logits(self, hidden_BD: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self.model.decoder.logits(hidden_BD).float()

    def _requests(self, prompts: Sequence[Prompt]) -> list[_Request]:
        config = self.model.config
        return [_Request(number, prompt, content(prompt, config)) for number, prompt in enumerate(prompts)]

    def _ready(self, requests: list[_Request]) -> list[_Request]:
        """The requests in the order they are best begun in, after a session was made that has room for each."""
        if not requests:
            return []
        ordered = sorted(requests, key=lambda request: request.content.tobytes())
        shared = common_prefix(ordered[0].content, ordered[-1].content)  # bytes in order: so have all between
        shared = min(shared, *(len(request.content) - request.wanted for request in requests))
        shared = whole_images(ordered[0].content, shared, image_tokens=self.model.config.connector.tokens)
        self._make_room(requests, shared if len(requests) > 2 else 0)
        # prompts that begin alike stay together, and such of like length
        groups: list[list[_Request]] = []
        assert self.session is not None
        for request in ordered:
            common = common_prefix(groups[-1][-1].content, request.content) if groups else 0
            if common >= self.session.before + LEAST:
                groups[-1].append(request)
            else:
                groups.append([request])
        groups.sort(key=lambda group: max(len(request.content) for request in group))
        return [request for group in groups for request in group]

    def _make_room(self, requests: Sequence[_Request], shared: int) -> None:
        """A session whose prefix is what all requests begin with, if that is worth it; the last one if it serves."""
        longest = max(len(request.content) + request.tokens for request in requests)
        session = self.session
        # an error may have left rows in use
        if session is not None and session.free == self.rows and session.places + session.before >= longest:
            begins = session.prefix is None or (
                common_prefix(session.prefix.content, requests[0].content) >= session.before
                and shared >= session.before
            )
            if begins and shared < session.before + LEAST:
                return
        prefix = None
        if shared >= LEAST:
            prefix = begun(
                self.model,
                requests[0].prompt,
                requests[0].content,
                places=shared,
                features=self.features,
            )
            self.prefilled += shared
        self.session = None  # its memory, before the next one's
        self.session = Session(
            self.model,
            rows=self.rows,
            places=longest - (shared if prefix else 0),
            features=self.features,
            prefix=prefix,
        )

    def _wave(self, waiting: list[_Request]) -> list[_Request]:
        """The requests that begin now, taken out of `waiting`: as many as fit at once.

        One that begins like another of them, and not yet like a row, waits until that one's row can be read.
        """
        assert self.session is not None
        selected: list[_Request] = []
        longest = 0
        for request in waiting[: 4 * self.rows]:
            known = self.session.known(request.content)
            longest = max(longest, len(request.content) - known)
            if len(selected) == self.session.free or (selected and longest * (len(selected) + 1) > PLACES_AT_ONCE):
                break
            if all(common_prefix(request.content, other.content) < known + LEAST for other in selected):
                selected.append(request)
        taken = {request.number for request in selected}
        waiting[:] = [request for request in waiting if request.number not in taken]
        return selected


def generate(
    model: MLLM,
    prompts: Sequence[Prompt],
    *,
    decoding: Decoding | Sequence[Decoding],
    rows: int | None = None,
) -> list[Completion]:
    """A completion of every prompt, `rows` (else all) written side by side."""
    return Engine(model, rows=rows or max(1, len(prompts))).generate(prompts, decoding)


def score(model: MLLM, pairs: Sequence[tuple[Prompt, Sequence[int]]]) -> list[Score]:
    """How likely each continuation is after its prompt."""
    return Engine(model).score(pairs)


class _Writing:
    """Texts on their way: what each has so far, and its last token, which its row has not taken in yet."""

    def __init__(self, decodings: Sequence[Decoding], *, image_token: int):
        self.decodings, self.image_token = decodings, image_token
        self.completions = [Completion() for _ in decodings]
        self.streams = [stream(one.seed, number) for number, one in enumerate(decodings)]
        self.guesses = Guesses()
        self.last: dict[int, int] = {}

    def room(self, number: int) -> int:
        """How many tokens may be guessed: one that is written after them needs no guess."""
        return self.decodings[number].tokens - len(self.completions[number].tokens) - 1

    def take(self, numbers: Sequence[int], logits_BV: torch.Tensor) -> list[int]:
        """Add the next token to each of these texts; the numbers of those that end."""
        found = choose(
            logits_BV,
            [self.decodings[number] for number in numbers],
            streams=[self.streams[number] for number in numbers],
            image_token=self.image_token,
            allowed=[self.decodings[number].allowed(self.completions[number].tokens) for number in numbers],
        )
        ended = []
        for number, token, log_probability in zip(numbers, *found, strict=True):
            self.last[number] = token
            completion, decoding = self.completions[number], self.decodings[number]
            if _ended(completion, token, log_probability=log_probability, decoding=decoding):
                del self.last[number]
                ended.append(number)
        return ended


def _ended(completion: Completion, token: int, *, log_probability: float, decoding: Decoding) -> bool:
    """Whether `completion` ends with `token`, which it takes in unless it is a stop token."""
    completion.log_probability += log_probability
    if token in decoding.stop_tokens:
        completion.reason = "token"
        return True
    completion.tokens.append(token)
    if decoding.stopped is not None and decoding.stopped(completion.tokens):
        completion.reason = "text"
        return True
    if decoding.choices is not None and not decoding.allowed(completion.tokens):
        completion.reason = "choice"
        return True
    return len(completion.tokens) >= decoding.tokens


def _score(logits_TV: torch.Tensor, continuation: Sequence[int], *, image_token: int) -> Score:
    answer_T = torch.tensor(continuation, device=logits_TV.device)
    log_probability_T = logits_TV.log_softmax(-1).gather(-1, answer_T[:, None])[:, 0]
    greedy = bool((writable(logits_TV, image_token).argmax(-1) == answer_T).all())
    return Score(float(log_probability_T.sum()), len(continuation), greedy)

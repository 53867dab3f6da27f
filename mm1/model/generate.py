"""Text from a trained model: batched generation over a key/value cache, and scores of given continuations.

`Session` is the engine: rows of a cache that prompts enter and leave at any step. `generate` and `score`
run it over a list.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from mm1.model.decoder import Cache
from mm1.model.mllm import MLLM


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens with the image token at every image place, and the images in the order of their places.

    Give pixels (`images_NCYX`, uint8) or features that `MLLM.encode_images` made before
    (`features_NSD`); a caller that meets an image often keeps the latter by content hash.
    """

    tokens: Sequence[int]
    images_NCYX: torch.Tensor | None = None
    features_NSD: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Decoding:
    """How tokens are chosen, and when a completion ends.

    `stopped` gets all tokens written so far and says whether the text holds a stop string. With
    `temperature` 0 the likeliest token is taken; otherwise row i draws from its own stream (seed, i),
    so what a row says doesn't depend on its neighbours.
    """

    tokens: int = 64  # written at most
    stop_tokens: frozenset[int] = frozenset()
    stopped: Callable[[list[int]], bool] | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(slots=True)
class Completion:
    """What the model wrote. A stop token is left out; a stop string is not."""

    tokens: list[int] = field(default_factory=list)
    log_probability: float = 0.0  # of all choices, the stop token's too, in nats
    reason: Literal["token", "text", "length"] = "length"


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a continuation is."""

    log_probability: float  # nats, summed over its tokens
    tokens: int
    greedy: bool  # every token is the likeliest: greedy decoding would write just this


class Session:
    """Rows of a key/value cache, each with its own text. Rows 0 to `len(lengths)` - 1 are in use.

    `admit` starts rows, `step` continues all of them by one token, `release` ends one and moves the
    last into its place, so that rows in use stay together and no step copies the cache.
    """

    def __init__(self, model: MLLM, *, rows: int, places: int, image_token: int):
        self.model = model
        self.image_token = image_token
        self.lengths: list[int] = []
        self.rows, self.places = rows, places
        weight = model.decoder.embedding.weight
        self.device = weight.device
        self.cache = Cache.empty(model.decoder.config, rows=rows, places=places, like=weight)

    @torch.inference_mode()
    def admit(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Logits [new rows, V] of the first token of each prompt, which take the next free rows."""
        lengths = [len(prompt.tokens) for prompt in prompts]
        first, longest = len(self.lengths), max(lengths)
        if first + len(prompts) > self.rows or longest > self.places:
            raise ValueError(
                f"{len(prompts)} prompts of up to {longest} tokens don't fit into a cache with "
                f"{self.rows - first} free rows of {self.places} places; make it larger or admit fewer"
            )
        x_BTD = _embed(self.model, prompts, image_token=self.image_token)
        position_BT = torch.arange(longest, device=self.device).expand(len(prompts), -1)
        cache = self.cache.view(slice(first, first + len(prompts)), longest)
        hidden_BTD = self.model.decoder(x_BTD, position_BT, cache=cache)
        last_B = torch.tensor(lengths, device=self.device) - 1
        self.lengths += lengths
        row_B = torch.arange(len(prompts), device=self.device)
        return self.model.decoder.logits(hidden_BTD[row_B, last_B]).float()

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Logits [rows in use, V] after each row is continued by its token of `tokens`."""
        tokens_B1 = torch.tensor(tokens, device=self.device)[:, None]
        position_B1 = torch.tensor(self.lengths, device=self.device)[:, None]
        self.lengths = [length + 1 for length in self.lengths]
        cache = self.cache.view(slice(0, len(self.lengths)), max(self.lengths))
        x_B1D = self.model.decoder.embed(tokens_B1)
        hidden_B1D = self.model.decoder(x_B1D, position_B1, cache=cache)
        return self.model.decoder.logits(hidden_B1D[:, 0]).float()

    @torch.inference_mode()
    def release(self, row: int) -> None:
        """End `row`; the last row in use takes its number."""
        last = len(self.lengths) - 1
        if row != last:
            for x_BLKW in (*self.cache.keys, *self.cache.values):
                x_BLKW[row, : self.lengths[last]] = x_BLKW[last, : self.lengths[last]]
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()


def generate(model: MLLM, prompts: Sequence[Prompt], *, image_token: int, decoding: Decoding) -> list[Completion]:
    """A completion of every prompt, all written side by side."""
    if not prompts or not decoding.tokens:
        return [Completion() for _ in prompts]
    longest = max(len(prompt.tokens) for prompt in prompts)
    session = Session(model, rows=len(prompts), places=longest + decoding.tokens, image_token=image_token)
    completions = [Completion() for _ in prompts]
    streams = [_stream(decoding.seed, index) for index in range(len(prompts))]
    written_by = list(range(len(prompts)))  # which prompt each row of the session belongs to
    logits_BV = session.admit(prompts)
    while True:
        tokens, log_probabilities = choose(
            logits_BV, decoding, streams=[streams[i] for i in written_by], image_token=image_token
        )
        going = [
            not _ended(completions[i], token, log_probability=log_probability, decoding=decoding)
            for i, token, log_probability in zip(written_by, tokens, log_probabilities, strict=True)
        ]
        for row in reversed(range(len(going))):
            if not going[row]:
                session.release(row)
                written_by[row], tokens[row] = written_by[-1], tokens[-1]
                written_by.pop()
                tokens.pop()
        if not written_by:
            return completions
        logits_BV = session.step(tokens)


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
    return len(completion.tokens) >= decoding.tokens


@torch.inference_mode()
def choose(
    logits_BV: torch.Tensor, decoding: Decoding, *, streams: Sequence[torch.Generator], image_token: int
) -> tuple[list[int], list[float]]:
    """The next token of every row, never the image token, and its log-probability (before temperature)."""
    log_probability_BV = logits_BV.log_softmax(-1)
    logits_BV = _writable(logits_BV, image_token)
    if decoding.temperature == 0:
        token_B = logits_BV.argmax(-1)
    else:
        kept_BV, order_BV = (logits_BV / decoding.temperature).softmax(-1).sort(-1, descending=True)
        before_BV = kept_BV.cumsum(-1) - kept_BV
        kept_BV = kept_BV.masked_fill(before_BV >= decoding.top_p, 0)
        kept_BV[:, 0] = kept_BV[:, 0].clamp(min=1e-30)  # top_p 0: the likeliest
        drawn_B = torch.stack([torch.rand((), generator=stream) for stream in streams]).to(kept_BV.device)
        mass_BV = kept_BV.cumsum(-1)
        # the drawn point falls into the stretch of one token; the last clamp is for rounding at the end
        rank_B1 = (mass_BV <= drawn_B[:, None] * mass_BV[:, -1:]).sum(-1, keepdim=True)
        rank_B1 = rank_B1.minimum((kept_BV > 0).sum(-1, keepdim=True) - 1)
        token_B = order_BV.gather(-1, rank_B1)[:, 0]
    chosen_B = log_probability_BV.gather(-1, token_B[:, None])[:, 0]
    return token_B.tolist(), chosen_B.tolist()


def _writable(logits: torch.Tensor, image_token: int) -> torch.Tensor:
    """The logits without the image token, which stands for pixels that nothing here could give it."""
    return logits.index_fill(-1, torch.tensor(image_token, device=logits.device), -torch.inf)


def _stream(seed: int, index: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)


@torch.inference_mode()
def score(model: MLLM, pairs: Sequence[tuple[Prompt, Sequence[int]]], *, image_token: int) -> list[Score]:
    """How likely each continuation is after its prompt; all in one forward pass, so give a batch at a time."""
    if not pairs:
        return []
    if any(not len(prompt.tokens) or not len(continuation) for prompt, continuation in pairs):
        raise ValueError("a prompt or a continuation is empty; give each one token (such as the one that starts text)")
    whole = [
        Prompt([*prompt.tokens, *continuation], prompt.images_NCYX, prompt.features_NSD)
        for prompt, continuation in pairs
    ]
    x_BTD = _embed(model, whole, image_token=image_token)
    position_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device).expand(len(whole), -1)
    hidden_BTD = model.decoder(x_BTD, position_BT)
    # only the places before a token of a continuation need logits
    rows = [row for row, (_, continuation) in enumerate(pairs) for _ in continuation]
    places = [
        place
        for prompt, continuation in pairs
        for place in range(len(prompt.tokens) - 1, len(prompt.tokens) + len(continuation) - 1)
    ]
    answers = torch.tensor([token for _, continuation in pairs for token in continuation], device=x_BTD.device)
    logits = model.decoder.logits(hidden_BTD[rows, places]).float()
    log_probabilities = logits.log_softmax(-1).gather(-1, answers[:, None])[:, 0].tolist()
    likeliest = (_writable(logits, image_token).argmax(-1) == answers).tolist()
    scores, start = [], 0
    for _, continuation in pairs:
        stop = start + len(continuation)
        scores.append(Score(sum(log_probabilities[start:stop]), stop - start, all(likeliest[start:stop])))
        start = stop
    return scores


def _embed(model: MLLM, prompts: Sequence[Prompt], *, image_token: int) -> torch.Tensor:
    """The decoder's input [B, T, D], rows filled up at their end. Images are encoded together."""
    image_tokens = model.config.connector.tokens
    for index, prompt in enumerate(prompts):
        places = sum(token == image_token for token in prompt.tokens)
        images = prompt.features_NSD if prompt.features_NSD is not None else prompt.images_NCYX
        given = 0 if images is None else len(images)
        if places != given * image_tokens or not len(prompt.tokens):
            raise ValueError(
                f"prompt {index} has {len(prompt.tokens)} tokens, of them {places} image places, and "
                f"{given} images of {image_tokens} places each; every image needs exactly its places"
            )
    weight = model.decoder.embedding.weight
    longest = max(len(prompt.tokens) for prompt in prompts)
    # token 0 stands behind the shorter ones, and is never seen
    tokens_BT = torch.tensor(
        [[*prompt.tokens, *[0] * (longest - len(prompt.tokens))] for prompt in prompts], device=weight.device
    )
    return model.embed(tokens_BT, _features(model, prompts), image_token=image_token)


def _features(model: MLLM, prompts: Sequence[Prompt]) -> torch.Tensor:
    """Features [N, S, D] of all images of all prompts in order; pixels are encoded in one pass."""
    weight = model.decoder.embedding.weight
    pixels = [p.images_NCYX for p in prompts if p.features_NSD is None and p.images_NCYX is not None]
    encoded = None
    if any(len(images_NCYX) for images_NCYX in pixels):
        encoded = model.encode_images(torch.cat([images.to(weight.device) for images in pixels]))
    features, start = [weight.new_zeros(0, model.config.connector.tokens, weight.shape[1])], 0
    for prompt in prompts:
        if prompt.features_NSD is not None:
            features.append(prompt.features_NSD.to(weight))
        elif prompt.images_NCYX is not None and encoded is not None:
            stop = start + len(prompt.images_NCYX)
            features.append(encoded[start:stop])
            start = stop
    return torch.cat(features)

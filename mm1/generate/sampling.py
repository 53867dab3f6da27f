"""The next token: the likeliest, a sampled one, or the likeliest that leads to one of the allowed texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


class Choices:
    """The only texts that may be written, as a tree of their tokens.

    Raises:
        ValueError: no text, or a text without tokens.
    """

    def __init__(self, texts: Sequence[Sequence[int]]):
        if not texts or not all(len(text) for text in texts):
            raise ValueError("choices need at least one text, and each at least one token")
        self._tree: dict[int | None, Any] = {}
        for text in texts:
            node = self._tree
            for token in text:
                node = node.setdefault(token, {})
            node[None] = {}  # a text ends here

    def after(self, written: Sequence[int]) -> tuple[list[int], bool]:
        """The tokens that may follow `written`, and whether `written` is one of the texts."""
        node = self._tree
        for token in written:
            node = node[token]
        return [token for token in node if token is not None], None in node


@dataclass(frozen=True, slots=True)
class Decoding:
    """How tokens are selected, and when a completion ends.

    `stopped` gets all tokens written so far and returns whether the text holds a stop string. With `temperature` 0
    the likeliest token is selected. Otherwise a token is sampled from the `top_k` likeliest (0: from all), of these
    from the fewest that hold `top_p` of the probability; each request has random numbers of its own, so that others
    don't change what it writes. With `choices` only these texts can be written: the likelier next token decides
    between those with the same beginning, and a stop token ends one that is the beginning of another.
    `alternatives` of the likeliest tokens are reported beside each selected one.
    """

    max_tokens: int = 64
    stop_tokens: frozenset[int] = frozenset()
    stopped: Callable[[list[int]], bool] | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    choices: Choices | None = None
    alternatives: int = 0

    def allowed(self, written: Sequence[int]) -> list[int] | None:
        """The only tokens that may follow `written`; None if all may."""
        if self.choices is None:
            return None
        tokens, whole = self.choices.after(written)
        return [*tokens, *self.stop_tokens] if whole and tokens else tokens


@dataclass(frozen=True, slots=True)
class Sampled:
    """A selected token with its log-probability, and the likeliest tokens with theirs, all at temperature 1."""

    token: int
    log_probability: float
    alternatives: tuple[tuple[int, float], ...] = ()


@torch.inference_mode()
def sample_tokens(
    logits_BV: torch.Tensor,
    decodings: Sequence[Decoding],
    *,
    generators: Sequence[torch.Generator],
    image_token: int,
    allowed: Sequence[list[int] | None] = (),
) -> list[Sampled]:
    """The next token of each row of logits. It is never the image token."""
    total_B = logits_BV.logsumexp(-1)
    allowed_BV = without_image_token(logits_BV, image_token)
    most = max(decoding.alternatives for decoding in decodings)
    likeliest = likeliest_tokens(allowed_BV, total_B, count=most)
    for row, tokens in enumerate(allowed):
        if tokens is not None:
            kept = allowed_BV[row, tokens]
            allowed_BV[row] = -torch.inf
            allowed_BV[row, tokens] = kept
    token_B = allowed_BV.argmax(-1)
    sampled = [row for row, decoding in enumerate(decodings) if decoding.temperature > 0]
    if sampled:
        token_B[sampled] = _draw(
            allowed_BV[sampled],
            [decodings[row] for row in sampled],
            generators=[generators[row] for row in sampled],
        )
    log_probability_B = logits_BV.gather(-1, token_B[:, None])[:, 0] - total_B
    return [
        Sampled(token, log_probability, alternatives[: decoding.alternatives])
        for token, log_probability, alternatives, decoding in zip(
            token_B.tolist(), log_probability_B.tolist(), likeliest, decodings, strict=True
        )
    ]


def likeliest_tokens(
    logits_BV: torch.Tensor, total_B: torch.Tensor, *, count: int
) -> list[tuple[tuple[int, float], ...]]:
    """The `count` likeliest tokens of each row with their log-probabilities; `total_B` is the log of all mass."""
    if not count:
        return [()] * len(logits_BV)
    value_BA, token_BA = logits_BV.topk(min(count, logits_BV.shape[1]))
    value_BA = value_BA - total_B[:, None]
    return [
        tuple(zip(tokens, values, strict=True))
        for tokens, values in zip(token_BA.tolist(), value_BA.tolist(), strict=True)
    ]


def _draw(
    logits_BV: torch.Tensor, decodings: Sequence[Decoding], *, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    device, vocabulary = logits_BV.device, logits_BV.shape[1]
    temperature_B, top_p_B, top_k_B = (
        torch.tensor(values, device=device)
        for values in (
            [decoding.temperature for decoding in decodings],
            [decoding.top_p for decoding in decodings],
            [decoding.top_k or vocabulary for decoding in decodings],
        )
    )
    kept_BV, order_BV = (logits_BV / temperature_B[:, None]).softmax(-1).sort(-1, descending=True)
    rank_V = torch.arange(vocabulary, device=device)
    kept_BV = kept_BV.masked_fill(rank_V >= top_k_B[:, None], 0)
    kept_BV = kept_BV / kept_BV.sum(-1, keepdim=True)
    before_BV = kept_BV.cumsum(-1) - kept_BV
    kept_BV = kept_BV.masked_fill(before_BV >= top_p_B[:, None], 0)
    kept_BV[:, 0] = kept_BV[:, 0].clamp(min=1e-30)  # with top_p 0 the likeliest token remains
    uniform_B = torch.stack([torch.rand((), generator=generator) for generator in generators]).to(device)
    mass_BV = kept_BV.cumsum(-1)
    # the first token whose cumulative mass exceeds the random number; the minimum guards against rounding at the end
    rank_B1 = (mass_BV <= uniform_B[:, None] * mass_BV[:, -1:]).sum(-1, keepdim=True)
    rank_B1 = rank_B1.minimum((kept_BV > 0).sum(-1, keepdim=True) - 1)
    return order_BV.gather(-1, rank_B1)[:, 0]


def without_image_token(logits: torch.Tensor, image_token: int) -> torch.Tensor:
    """A copy of the logits in which the image token is impossible: a model that writes text has no pixels for it."""
    logits = logits.clone()
    if image_token >= 0:
        logits[..., image_token] = -torch.inf
    return logits


def random_stream(seed: int, stream: int) -> torch.Generator:
    """The random numbers of stream number `stream` of `seed`."""
    return torch.Generator().manual_seed((seed * 1_000_003 + stream) % 2**63)

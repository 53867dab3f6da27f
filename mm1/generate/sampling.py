"""The next token: the likeliest, a sampled one, or the likeliest that leads to one of the allowed texts."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch


class Constraint(Protocol):
    """What may be written. It is asked with all tokens written so far, each time with more of one text."""

    def allowed(self, written: Sequence[int], stops: frozenset[int]) -> "list[int] | torch.Tensor":
        """The only tokens that may follow `written`: a list of them, or a bool for each of the vocabulary [V]."""

    def ended(self, written: Sequence[int]) -> bool:
        """Whether nothing may follow `written`, not even a stop token."""


class Choices:
    """The only texts that may be written, as a tree of their tokens: the constraint of multiple choice.

    The likelier next token decides between those with the same beginning, and a stop token ends one that is the
    beginning of another.

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

    def allowed(self, written: Sequence[int], stops: frozenset[int]) -> list[int]:
        """The tokens that may follow `written`; stop tokens only where `written` is one of the texts."""
        tokens, whole = self._after(written)
        return [*tokens, *stops] if whole and tokens else tokens

    def ended(self, written: Sequence[int]) -> bool:
        """Whether no text goes on after `written`."""
        return not self._after(written)[0]

    def _after(self, written: Sequence[int]) -> tuple[list[int], bool]:
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
    don't change what it writes. `constraint` says what may be written at all. `alternatives` of the likeliest tokens
    are reported beside each selected one.

    `bias` is added to the logits of some tokens. A token that was written n times has its logit lowered by
    `presence_penalty` + n * `frequency_penalty` (OpenAI's API reference).
    """

    max_tokens: int = 64
    stop_tokens: frozenset[int] = frozenset()
    stopped: Callable[[list[int]], bool] | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    constraint: Constraint | None = None
    alternatives: int = 0
    bias: Mapping[int, float] = field(default_factory=dict)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def allowed(self, written: Sequence[int]) -> list[int] | torch.Tensor | None:
        """The only tokens that may follow `written`; None if all may."""
        return None if self.constraint is None else self.constraint.allowed(written, self.stop_tokens)

    def change(self, written: Sequence[int]) -> dict[int, float]:
        """What is added to the logits after `written`, by token."""
        changes = dict(self.bias)
        if self.presence_penalty or self.frequency_penalty:
            for token, count in Counter(written).items():
                penalty = self.presence_penalty + count * self.frequency_penalty
                changes[token] = changes.get(token, 0.0) - penalty
        return changes


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
    written: Sequence[Sequence[int]] = (),
) -> list[Sampled]:
    """The next token of each row of logits, of which `written` are the tokens so far. It is never the image token."""
    total_B = logits_BV.logsumexp(-1)
    allowed_BV = without_image_token(logits_BV, image_token)
    most = max(decoding.alternatives for decoding in decodings)
    likeliest = likeliest_tokens(allowed_BV, total_B, count=most)
    for row, (decoding, tokens) in enumerate(zip(decodings, written or [()] * len(decodings), strict=True)):
        _restrict(allowed_BV[row], decoding, tokens)
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


def _restrict(logits_V: torch.Tensor, decoding: Decoding, written: Sequence[int]) -> None:
    """Change the logits of one row by bias and penalties, and make impossible what its constraint does not allow."""
    if changes := decoding.change(written):
        tokens = torch.tensor(list(changes), device=logits_V.device)
        logits_V[tokens] += torch.tensor(list(changes.values()), device=logits_V.device)
    allowed = decoding.allowed(written)
    if isinstance(allowed, torch.Tensor):
        logits_V.masked_fill_(~allowed.to(logits_V.device), -torch.inf)
    elif allowed is not None:
        kept = logits_V[allowed]
        logits_V.fill_(-torch.inf)
        logits_V[allowed] = kept


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
    """A token of each row, drawn by the Gumbel-max trick.

    It depends on the last bits of the logits only where two tokens come out equally large, so a request writes the
    same text in any batch. With a random number compared with cumulated probabilities, one of twelve texts of an
    untrained model changed with the batch.
    """
    device, vocabulary = logits_BV.device, logits_BV.shape[1]
    temperature_B = torch.tensor([decoding.temperature for decoding in decodings], device=device)
    logits_BV = logits_BV / temperature_B[:, None]
    narrow = [row for row, decoding in enumerate(decodings) if decoding.top_p < 1 or decoding.top_k]
    if narrow:
        logits_BV[narrow] = _likely(logits_BV[narrow], [decodings[row] for row in narrow])
    uniform_BV = torch.stack([torch.rand(vocabulary, generator=generator) for generator in generators])
    # half a step of torch's random numbers keeps 0 out, whose Gumbel number is infinite
    exponential_BV = -torch.log1p(-(uniform_BV + 2**-25))
    return (logits_BV - exponential_BV.log().to(device)).argmax(-1)


def _likely(logits_BV: torch.Tensor, decodings: Sequence[Decoding]) -> torch.Tensor:
    """The logits of tokens that top-k and top-p keep; those of others are minus infinity."""
    device, vocabulary = logits_BV.device, logits_BV.shape[1]
    top_p_B = torch.tensor([decoding.top_p for decoding in decodings], device=device)
    top_k_B = torch.tensor([decoding.top_k or vocabulary for decoding in decodings], device=device)
    kept_BV, order_BV = logits_BV.softmax(-1).sort(-1, descending=True)
    beyond_BV = torch.arange(vocabulary, device=device) >= top_k_B[:, None]
    kept_BV = kept_BV.masked_fill(beyond_BV, 0)
    kept_BV = kept_BV / kept_BV.sum(-1, keepdim=True)
    beyond_BV |= kept_BV.cumsum(-1) - kept_BV >= top_p_B[:, None]
    beyond_BV[:, 0] = False  # with top_p 0 the likeliest token remains
    return logits_BV.masked_fill(torch.zeros_like(beyond_BV).scatter(-1, order_BV, beyond_BV), -torch.inf)


def without_image_token(logits: torch.Tensor, image_token: int) -> torch.Tensor:
    """A copy of the logits in which the image token is impossible: a model that writes text has no pixels for it."""
    logits = logits.clone()
    if image_token >= 0:
        logits[..., image_token] = -torch.inf
    return logits


def random_stream(seed: int, stream: int) -> torch.Generator:
    """The random numbers of stream number `stream` of `seed`."""
    return torch.Generator().manual_seed((seed * 1_000_003 + stream) % 2**63)

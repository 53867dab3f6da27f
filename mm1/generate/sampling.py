"""Which token comes next: the likeliest, a drawn one, or the best that still leads to a given answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


class Choices:
    """The only texts that may be written, as a tree of their tokens.

    Raises:
        ValueError: there is none, or one without tokens.
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
        """The tokens that lead on from `written`, and whether it is one of the texts."""
        node = self._tree
        for token in written:
            node = node[token]
        return [token for token in node if token is not None], None in node


@dataclass(frozen=True, slots=True)
class Decoding:
    """How tokens are selected, and when a completion ends.

    `stopped` gets all tokens written so far and says whether the text holds a stop string. With `temperature` 0
    the likeliest token is taken; otherwise prompt i draws from its own stream (seed, i), so what is written
    doesn't depend on neighbours. Drawn are the `top_k` likeliest tokens (0: all), of them the fewest that hold
    `top_p` of the probability. Of `choices` that begin alike the likelier next token decides, not the whole text;
    where one is the beginning of another, a stop token ends it.
    """

    tokens: int = 64  # written at most
    stop_tokens: frozenset[int] = frozenset()
    stopped: Callable[[list[int]], bool] | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    choices: Choices | None = None

    def allowed(self, written: Sequence[int]) -> list[int] | None:
        """The only tokens that may follow; None where all may."""
        if self.choices is None:
            return None
        tokens, whole = self.choices.after(written)
        return [*tokens, *self.stop_tokens] if whole and tokens else tokens


@torch.inference_mode()
def choose(
    logits_BV: torch.Tensor,
    decodings: Sequence[Decoding],
    *,
    streams: Sequence[torch.Generator],
    image_token: int,
    allowed: Sequence[list[int] | None] = (),
) -> tuple[list[int], list[float]]:
    """The next token of every row, never the image token, and its log-probability among all (before temperature)."""
    whole_B = logits_BV.logsumexp(-1)
    open_BV = writable(logits_BV, image_token)
    for row, tokens in enumerate(allowed):
        if tokens is not None:
            kept = open_BV[row, tokens]
            open_BV[row] = -torch.inf
            open_BV[row, tokens] = kept
    token_B = open_BV.argmax(-1)
    drawing = [row for row, decoding in enumerate(decodings) if decoding.temperature > 0]
    if drawing:
        settings = [decodings[row] for row in drawing]
        token_B[drawing] = _draw(open_BV[drawing], settings, streams=[streams[row] for row in drawing])
    chosen_B = logits_BV.gather(-1, token_B[:, None])[:, 0] - whole_B
    return token_B.tolist(), chosen_B.tolist()


def _draw(
    logits_BV: torch.Tensor, decodings: Sequence[Decoding], *, streams: Sequence[torch.Generator]
) -> torch.Tensor:
    device, vocabulary = logits_BV.device, logits_BV.shape[1]
    heat_B, top_p_B, top_k_B = (
        torch.tensor(values, device=device)
        for values in (
            [decoding.temperature for decoding in decodings],
            [decoding.top_p for decoding in decodings],
            [decoding.top_k or vocabulary for decoding in decodings],
        )
    )
    kept_BV, order_BV = (logits_BV / heat_B[:, None]).softmax(-1).sort(-1, descending=True)
    rank_V = torch.arange(vocabulary, device=device)
    kept_BV = kept_BV.masked_fill(rank_V >= top_k_B[:, None], 0)
    kept_BV = kept_BV / kept_BV.sum(-1, keepdim=True)
    before_BV = kept_BV.cumsum(-1) - kept_BV
    kept_BV = kept_BV.masked_fill(before_BV >= top_p_B[:, None], 0)
    kept_BV[:, 0] = kept_BV[:, 0].clamp(min=1e-30)  # top_p 0: the likeliest
    drawn_B = torch.stack([torch.rand((), generator=stream) for stream in streams]).to(device)
    mass_BV = kept_BV.cumsum(-1)
    # the drawn point falls into the stretch of one token; the last clamp is for rounding at the end
    rank_B1 = (mass_BV <= drawn_B[:, None] * mass_BV[:, -1:]).sum(-1, keepdim=True)
    rank_B1 = rank_B1.minimum((kept_BV > 0).sum(-1, keepdim=True) - 1)
    return order_BV.gather(-1, rank_B1)[:, 0]


def writable(logits: torch.Tensor, image_token: int) -> torch.Tensor:
    """A copy of the logits without the image token, which stands for pixels that nothing here could give it."""
    logits = logits.clone()
    if image_token >= 0:
        logits[..., image_token] = -torch.inf
    return logits


def stream(seed: int, index: int) -> torch.Generator:
    """The random numbers of prompt `index` of a call."""
    return torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)

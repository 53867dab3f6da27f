"""Soft-capped scores and logits (Gemma 2; arXiv 2408.00118, section 2): they approach a bound, and never pass it.

Two letters beside the project's legend: W is the width of a head, L the positions of the keys. The module needs torch
alone: an export with a modelling file holds it too.
"""

import torch

SCORES_AT_ONCE = 1 << 26
"""Attention scores computed at once: 256 MB in fp32."""


def soft_cap(x: torch.Tensor, cap: float | None) -> torch.Tensor:
    """`x` between -cap and cap; as it is if `cap` is None."""
    return x if cap is None else (x / cap).tanh() * cap


def capped_attention(
    q_BHTW: torch.Tensor, k_BKLW: torch.Tensor, *, v_BKLW: torch.Tensor, seen_B1TL: torch.Tensor | None, cap: float
) -> torch.Tensor:
    """Attention with soft-capped scores, [B, H, T, W]; H is a multiple of K.

    `seen_B1TL` is true where a query sees a key; B may be 1, None lets all see all. In plain operations, some queries
    at a time: SDPA caps no scores.
    """
    rows, heads, queries, width = q_BHTW.shape
    step = max(1, SCORES_AT_ONCE // (rows * heads * k_BKLW.shape[2]))
    keys_BK1WL, values_BK1LW = k_BKLW[:, :, None].mT, v_BKLW[:, :, None]
    outs = []
    for first in range(0, queries, step):
        q_BKGTW = q_BHTW[:, :, first : first + step].unflatten(1, (k_BKLW.shape[1], -1))
        scores = soft_cap((q_BKGTW @ keys_BK1WL) * width**-0.5, cap)
        if seen_B1TL is not None:
            hidden = ~seen_B1TL[:, :, None, first : first + step]
            scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)  # finite: padding may see nothing
        share = scores.softmax(-1, dtype=torch.float32).to(q_BHTW.dtype)
        outs.append((share @ values_BK1LW).flatten(1, 2))
    return outs[0] if len(outs) == 1 else torch.cat(outs, 2)


def causal_mask(length: int, *, window: int | None, device: torch.device) -> torch.Tensor:
    """Which positions of one document see which, boolean [1, 1, T, T]: those before, within the window."""
    seen_TT = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return (seen_TT if window is None else seen_TT.triu(1 - window))[None, None]

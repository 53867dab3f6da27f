"""Causal attention on a CPU: documents sorted by length into dense groups, queries taken in blocks.

FlexAttention has no backward on CPUs (torch 2.13), a dense mask wastes most of its work on short documents, and
SDPA's kernel for CPUs reaches half of the rate of a matrix product.

Two letters beside the project's legend: W is the width of a head, L the length of the longest document of a group.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from mm1.model.softcap import capped_attention, causal_mask

BLOCK = 64
"""Queries of a block: fewer make thin matrix products, more do work that causality throws away."""

BLOCKED = range(BLOCK + 1, 1025)
"""Lengths for which blocks are used. With longer ones their scores would take more memory than the rest of a layer."""


@dataclass(frozen=True, slots=True)
class Groups:
    """The documents of a packed batch, sorted by length into groups of one length each: a dense [M, L] of slots.

    Attention runs per group and is plainly causal: the slots past a document's end come after its tokens, so none of
    them sees those. `shapes` are the (M, L). All indices are flat: positions of the batch [B * T], slots of the
    concatenated groups. `overhang` are the slots past a document's end, `padding` the positions of no document. With a
    `window` a query sees so many positions.
    """

    shapes: tuple[tuple[int, int], ...]
    position_of_slot: torch.Tensor
    slot_of_position: torch.Tensor
    overhang: torch.Tensor
    padding: torch.Tensor
    attend: Callable[..., torch.Tensor]
    window: int | None = None


def causal(
    q_BHTW: torch.Tensor,
    k_BKTW: torch.Tensor,
    *,
    v_BKTW: torch.Tensor,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Causal attention, [B, H, T, W]; H is a multiple of K. In blocks where that is faster, else by SDPA.

    With a `window` a query sees so many positions, its own and those just before it; a `softcap` bounds scores.
    """
    if softcap is None and q_BHTW.dtype == torch.float32 and q_BHTW.shape[2] in BLOCKED:
        group = q_BHTW.shape[1] // k_BKTW.shape[1]
        k_BHTW, v_BHTW = (x if group == 1 else x.repeat_interleave(group, 1) for x in (k_BKTW, v_BKTW))
        out = _Blocks.apply(*(x.flatten(0, 1) for x in (q_BHTW, k_BHTW, v_BHTW)), window)
        return out.unflatten(0, q_BHTW.shape[:2])
    return fused(q_BHTW, k_BKTW, v_BKTW=v_BKTW, window=window, softcap=softcap)


def fused(
    q_BHTW: torch.Tensor,
    k_BKTW: torch.Tensor,
    *,
    v_BKTW: torch.Tensor,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """The same by SDPA, on any device; with a softcap in plain operations."""
    gqa, length = q_BHTW.shape[1] != k_BKTW.shape[1], q_BHTW.shape[2]
    if softcap is None and (window is None or window >= length):
        return F.scaled_dot_product_attention(q_BHTW, k_BKTW, v_BKTW, is_causal=True, enable_gqa=gqa)
    seen_11TT = causal_mask(length, window=window, device=q_BHTW.device)
    if softcap is not None:
        return capped_attention(q_BHTW, k_BKTW, v_BKLW=v_BKTW, seen_B1TL=seen_11TT, cap=softcap)
    return F.scaled_dot_product_attention(q_BHTW, k_BKTW, v_BKTW, seen_11TT, enable_gqa=gqa)


def group_documents(document_BT: torch.Tensor, *, window: int | None = None) -> Groups:
    """The groups of a packed batch's documents; `document_BT` numbers them, 0 is padding."""
    starts, lengths = _spans(document_BT)
    order = torch.argsort(lengths, stable=True)
    starts, lengths = starts[order], lengths[order]
    shapes, positions, overhangs = [], [], []
    for first, last in _cuts(lengths.tolist()):
        longest = int(lengths[last - 1])
        offset_1L = torch.arange(longest)[None]
        length_M1 = lengths[first:last, None]
        positions.append((starts[first:last, None] + offset_1L.minimum(length_M1 - 1)).flatten())
        overhangs.append((offset_1L >= length_M1).flatten())
        shapes.append((last - first, longest))
    position, past = torch.cat(positions), torch.cat(overhangs)
    slot = torch.zeros(document_BT.numel(), dtype=torch.int64)
    slot[position[~past]] = (~past).nonzero().flatten()
    padding = (document_BT.flatten() == 0).nonzero().flatten()
    return Groups(tuple(shapes), position, slot, past.nonzero().flatten(), padding, _uncompiled(), window)


def _spans(document_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first flat position and the length of every document."""
    before_BT = F.pad(document_BT, (1, 0), value=-1)[:, :-1]  # -1: no document continues from the sequence before
    edges = (document_BT != before_BT).flatten().nonzero().flatten()
    lengths = torch.diff(edges, append=edges.new_tensor([document_BT.numel()]))
    real = document_BT.flatten()[edges] > 0
    return edges[real], lengths[real]


def _cuts(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges of ascending `lengths` in which the longest is at most a quarter (or 8) above the shortest."""
    cuts, first = [], 0
    for index, length in enumerate(lengths):
        if length > max(lengths[first] + 8, lengths[first] * 5 // 4):
            cuts.append((first, index))
            first = index
    return [*cuts, (first, len(lengths))]


@cache
def _uncompiled() -> Callable[..., torch.Tensor]:
    """`_grouped_attention`, kept out of compiled code, which would be rebuilt for the shapes of every batch.

    Wrapped at first use: that imports the compiler, which takes more than a second.
    """
    return torch.compiler.disable(_grouped_attention)


def _grouped_attention(
    q_BTHW: torch.Tensor, k_BTKW: torch.Tensor, *, v_BTKW: torch.Tensor, groups: Groups, softcap: float | None
) -> torch.Tensor:
    sizes = [documents * length for documents, length in groups.shapes]
    to_slots = (groups.position_of_slot, groups.overhang)
    to_positions = (groups.slot_of_position, groups.padding)
    parts = [
        _Reorder.apply(x.flatten(0, 1).flatten(1), *to_slots, *to_positions).unflatten(1, x.shape[2:]).split(sizes)
        for x in (q_BTHW, k_BTKW, v_BTKW)
    ]
    outs = []
    for shape, *qkv in zip(groups.shapes, *parts, strict=True):
        q, k, v = (x.unflatten(0, shape).transpose(1, 2) for x in qkv)
        out = causal(q, k, v_BKTW=v, window=groups.window, softcap=softcap)
        outs.append(out.transpose(1, 2).flatten(0, 1))
    out = torch.cat(outs).flatten(1)
    return _Reorder.apply(out, *to_positions, *to_slots).view(q_BTHW.shape)


class _Reorder(torch.autograd.Function):
    """The rows of `x` in the order of `index`, zero at `blank`; the gradient goes by `index_back` and `blank_back`.

    Both directions are plain copies. So the backward is deterministic and as fast as the forward, where indexing's
    own backward is a scatter that accumulates.
    """

    @staticmethod
    def forward(ctx, x, index, blank, index_back, blank_back):
        ctx.save_for_backward(index, blank, index_back, blank_back)
        return x.index_select(0, index).index_fill_(0, blank, 0)

    @staticmethod
    def backward(ctx, grad):
        index, blank, index_back, blank_back = ctx.saved_tensors
        back = _Reorder.apply(grad.contiguous(), index_back, blank_back, index, blank)
        return back, None, None, None, None


class _Blocks(torch.autograd.Function):
    """Causal attention of heads [N, T, W], a block of queries at a time over the keys before the block's end.

    The probabilities are kept for the backward pass. SDPA's kernel for CPUs computes them again, in small tiles: with
    it a step of 512 tokens took 1.6 times as long.
    """

    @staticmethod
    def forward(ctx, q_NTW, k_NTW, v_NTW, window):
        later = q_NTW.new_full((BLOCK, BLOCK), -torch.inf).triu(1)
        q_NTW, out_NTW, parts = q_NTW * q_NTW.shape[2] ** -0.5, torch.empty_like(q_NTW), []
        for first, last in _blocks(q_NTW.shape[1]):
            queries, keys = slice(first, last), slice(_start(first, window), last)
            part = torch.bmm(q_NTW[:, queries], k_NTW[:, keys].transpose(1, 2))
            part[:, :, first - keys.start :] += later[: last - first, : last - first]
            if window is not None and last > window:
                behind = torch.arange(first, last)[:, None] - torch.arange(keys.start, last)
                part.masked_fill_(behind >= window, -torch.inf)
            torch.softmax(part, -1, out=part)
            torch.bmm(part, v_NTW[:, keys], out=out_NTW[:, queries])
            parts.append(part)
        ctx.window = window
        ctx.save_for_backward(q_NTW, k_NTW, v_NTW, out_NTW, *parts)
        return out_NTW

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_NTW):
        q_NTW, k_NTW, v_NTW, out_NTW, *parts = ctx.saved_tensors
        grad_NTW = grad_NTW.contiguous()
        through_NT1 = (grad_NTW * out_NTW).sum(-1, keepdim=True)  # the softmax's sum (arXiv 2205.14135, appendix B.2)
        grad_q_NTW, grad_k_NTW, grad_v_NTW = torch.empty_like(q_NTW), torch.zeros_like(k_NTW), torch.zeros_like(v_NTW)
        for (first, last), part in zip(_blocks(q_NTW.shape[1]), parts, strict=True):
            queries, keys = slice(first, last), slice(_start(first, ctx.window), last)
            scores = torch.bmm(grad_NTW[:, queries], v_NTW[:, keys].transpose(1, 2))
            scores.sub_(through_NT1[:, queries]).mul_(part)
            torch.bmm(scores, k_NTW[:, keys], out=grad_q_NTW[:, queries])
            grad_k_NTW[:, keys].baddbmm_(scores.transpose(1, 2), q_NTW[:, queries])
            grad_v_NTW[:, keys].baddbmm_(part.transpose(1, 2), grad_NTW[:, queries])
        return grad_q_NTW.mul_(q_NTW.shape[2] ** -0.5), grad_k_NTW, grad_v_NTW, None


def _start(first: int, window: int | None) -> int:
    """The first key that the query at `first` sees."""
    return 0 if window is None else max(0, first - window + 1)


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    """The first and, exclusive, the last position of each block of queries."""
    return ((first, min(first + BLOCK, length)) for first in range(0, length, BLOCK))

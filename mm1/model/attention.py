"""Causal attention inside documents: which places see which, and the fastest right way there on each device.

Two letters beside the project's legend: W is the width of a head, L the places of a key/value
cache, or of the longest document of a group.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

BLOCK = 64
"""Queries of a block of `_Blocks`: fewer make thin matrix products, more do work that causality throws away."""

BLOCKED = range(BLOCK + 1, 1025)
"""Places of rows for which `_Blocks` is used: of longer ones it would keep more than the rest of a layer does."""


@dataclass(frozen=True, slots=True)
class Causal:
    """Every row holds one document from its first place on, so plain causal attention is right."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Documents of a packed batch sorted by length into groups, each a dense [M, L] of places.

    Attention runs per group, plainly causal: a place past its document's end stands behind all real
    ones, so none sees it. `shapes` are the (M, L); `slot` and `place` lead from the packed places to
    the concatenated groups and back; `overhang` are the slots past an end, `padding` the places of
    no document.
    """

    shapes: tuple[tuple[int, int], ...]
    place: torch.Tensor  # of every slot
    slot: torch.Tensor  # of every place
    overhang: torch.Tensor
    padding: torch.Tensor
    attend: Callable[..., torch.Tensor]


Mask = Causal | Groups | BlockMask | torch.Tensor
"""Which places see which. A tensor is boolean [B, 1, T, L]: true where a query sees a key."""


def document_mask(document_BT: torch.Tensor) -> Mask:
    """The mask that keeps attention causal and inside documents; build it once a batch, for all layers.

    On a GPU it is a block mask for FlexAttention, built without waiting for the device; on a CPU,
    where FlexAttention has no backward (torch 2.13) and a dense mask wastes most of its work on
    short documents, it is `Groups`.
    """
    if document_BT.device.type == "cuda":
        return _block_mask(document_BT)
    if document_BT.device.type != "cpu":
        return dense_mask(document_BT)
    if bool((document_BT <= 1).all() and (document_BT.diff() <= 0).all()):
        return Causal()
    return _group(document_BT)


def dense_mask(document_BT: torch.Tensor) -> torch.Tensor:
    """The same as a boolean [B, 1, T, T]: right everywhere, slow. Padding sees padding: no row is empty."""
    same_BTT = document_BT[:, :, None] == document_BT[:, None, :]
    return same_BTT.tril()[:, None]


def attention(q_BTHW: torch.Tensor, k_BLKW: torch.Tensor, *, v_BLKW: torch.Tensor, mask: Mask) -> torch.Tensor:
    """Attention of every query over the keys `mask` lets it see, [B, T, H, W]; H is a multiple of K."""
    if isinstance(mask, Groups):
        return mask.attend(q_BTHW, k_BLKW, v_BTKW=v_BLKW, groups=mask)
    q, k, v = (x.transpose(1, 2) for x in (q_BTHW, k_BLKW, v_BLKW))
    if isinstance(mask, BlockMask):
        flex = flex_attention if torch.compiler.is_compiling() else _flex()
        out = flex(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    elif isinstance(mask, Causal):
        out = _causal(q, k, v_BKTW=v)
    else:
        out = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2)


def _causal(q_BHTW: torch.Tensor, k_BKTW: torch.Tensor, *, v_BKTW: torch.Tensor) -> torch.Tensor:
    if q_BHTW.device.type == "cpu" and q_BHTW.dtype == torch.float32 and q_BHTW.shape[2] in BLOCKED:
        group = q_BHTW.shape[1] // k_BKTW.shape[1]
        k_BHTW, v_BHTW = (x if group == 1 else x.repeat_interleave(group, 1) for x in (k_BKTW, v_BKTW))
        out = _Blocks.apply(*(x.flatten(0, 1) for x in (q_BHTW, k_BHTW, v_BHTW)))
        return out.unflatten(0, q_BHTW.shape[:2])
    gqa = q_BHTW.shape[1] != k_BKTW.shape[1]
    return F.scaled_dot_product_attention(q_BHTW, k_BKTW, v_BKTW, is_causal=True, enable_gqa=gqa)


class _Blocks(torch.autograd.Function):
    """Causal attention of heads [N, T, W], a block of queries at a time over the keys before its end.

    What each place takes from each is kept for the backward pass. SDPA's kernel for CPUs makes it again, and its
    small tiles reach half of the rate of a matrix product: for 512 places a step through it took 1.6 times as long.
    """

    @staticmethod
    def forward(ctx, q_NTW, k_NTW, v_NTW):
        later = q_NTW.new_full((BLOCK, BLOCK), -torch.inf).triu(1)
        q_NTW, out_NTW, parts = q_NTW * q_NTW.shape[2] ** -0.5, torch.empty_like(q_NTW), []
        for first, last in _blocks(q_NTW.shape[1]):
            queries = slice(first, last)
            part = torch.bmm(q_NTW[:, queries], k_NTW[:, :last].transpose(1, 2))
            part[:, :, queries] += later[: last - first, : last - first]
            torch.softmax(part, -1, out=part)
            torch.bmm(part, v_NTW[:, :last], out=out_NTW[:, queries])
            parts.append(part)
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
            queries = slice(first, last)
            scores = torch.bmm(grad_NTW[:, queries], v_NTW[:, :last].transpose(1, 2))
            scores.sub_(through_NT1[:, queries]).mul_(part)
            torch.bmm(scores, k_NTW[:, :last], out=grad_q_NTW[:, queries])
            grad_k_NTW[:, :last].baddbmm_(scores.transpose(1, 2), q_NTW[:, queries])
            grad_v_NTW[:, :last].baddbmm_(part.transpose(1, 2), grad_NTW[:, queries])
        return grad_q_NTW.mul_(q_NTW.shape[2] ** -0.5), grad_k_NTW, grad_v_NTW


def _blocks(places: int) -> Iterator[tuple[int, int]]:
    """First and last place, exclusive, of each block of queries."""
    return ((first, min(first + BLOCK, places)) for first in range(0, places, BLOCK))


@cache
def _flex():
    return torch.compile(flex_attention)


@cache
def _create_block_mask():
    return torch.compile(create_block_mask)


def _block_mask(document_BT: torch.Tensor) -> BlockMask:
    def visible(b, h, query, key):
        return (query >= key) & (document_BT[b, query] == document_BT[b, key])

    rows, places = document_BT.shape
    return _create_block_mask()(visible, rows, None, places, places, device=document_BT.device)


def _group(document_BT: torch.Tensor) -> Groups:
    starts, lengths = _spans(document_BT)
    order = torch.argsort(lengths, stable=True)
    starts, lengths = starts[order], lengths[order]
    shapes, places, overhangs = [], [], []
    for first, last in _cuts(lengths.tolist()):
        longest = int(lengths[last - 1])
        offset_1L = torch.arange(longest)[None]
        length_M1 = lengths[first:last, None]
        places.append((starts[first:last, None] + offset_1L.minimum(length_M1 - 1)).flatten())
        overhangs.append((offset_1L >= length_M1).flatten())
        shapes.append((last - first, longest))
    place, past = torch.cat(places), torch.cat(overhangs)
    slot = torch.zeros(document_BT.numel(), dtype=torch.int64)
    slot[place[~past]] = (~past).nonzero().flatten()
    padding = (document_BT.flatten() == 0).nonzero().flatten()
    return Groups(tuple(shapes), place, slot, past.nonzero().flatten(), padding, _uncompiled())


def _spans(document_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First flat place and length of every document."""
    before_BT = F.pad(document_BT, (1, 0), value=-1)[:, :-1]  # -1: a row never goes on with the last one's
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


class _Move(torch.autograd.Function):
    """Rows of `x` in another order, zero at `blank`; the gradient takes the way back.

    Both ways are plain copies, so the backward is as fast as the forward and deterministic, where
    indexing's own backward would be an accumulating scatter.
    """

    @staticmethod
    def forward(ctx, x, index, blank, index_back, blank_back):
        ctx.save_for_backward(index, blank, index_back, blank_back)
        return x.index_select(0, index).index_fill_(0, blank, 0)

    @staticmethod
    def backward(ctx, grad):
        index, blank, index_back, blank_back = ctx.saved_tensors
        back = _Move.apply(grad.contiguous(), index_back, blank_back, index, blank)
        return back, None, None, None, None


@cache
def _uncompiled() -> Callable[..., torch.Tensor]:
    """`_grouped_attention` kept out of compiled code, which every batch's own shapes would have built anew.

    Wrapped at first use, as that imports the compiler, for a second and more.
    """
    return torch.compiler.disable(_grouped_attention)


def _grouped_attention(
    q_BTHW: torch.Tensor, k_BTKW: torch.Tensor, *, v_BTKW: torch.Tensor, groups: Groups
) -> torch.Tensor:
    sizes = [documents * places for documents, places in groups.shapes]
    parts = [
        _Move.apply(x.flatten(0, 1).flatten(1), groups.place, groups.overhang, groups.slot, groups.padding)
        .unflatten(1, x.shape[2:])
        .split(sizes)
        for x in (q_BTHW, k_BTKW, v_BTKW)
    ]
    outs = []
    for shape, *qkv in zip(groups.shapes, *parts, strict=True):
        q, k, v = (x.unflatten(0, shape).transpose(1, 2) for x in qkv)
        outs.append(_causal(q, k, v_BKTW=v).transpose(1, 2).flatten(0, 1))
    out = torch.cat(outs).flatten(1)
    back = _Move.apply(out, groups.slot, groups.padding, groups.place, groups.overhang)
    return back.view(q_BTHW.shape)

"""Causal attention inside documents: the mask of a packed batch, and attention by the fastest way of each device.

Two letters beside the project's legend: W is the width of a head, L the positions of the keys.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from mm1.model import attention_cpu
from mm1.model.attention_cpu import Groups, group_documents
from mm1.model.softcap import capped_attention, soft_cap


@dataclass(frozen=True, slots=True)
class Causal:
    """Every sequence holds one document from its first position on, so plain causal attention is right.

    With a `window` a query sees so many positions, its own and those just before it.
    """

    window: int | None = None


Mask = Causal | Groups | BlockMask | torch.Tensor
"""Which positions see which. A tensor is boolean [B, 1, T, L]: true where a query sees a key."""


def document_mask(document_BT: torch.Tensor, *, window: int | None = None) -> Mask:
    """The mask that keeps attention causal and inside documents; build it once a batch, for all layers of a `window`.

    On a GPU it is a block mask for FlexAttention, built without waiting for the device; on a CPU `Groups`, for the
    reasons in `attention_cpu.py`.
    """
    if document_BT.device.type == "cuda":
        return _block_mask(document_BT, window)
    if document_BT.device.type != "cpu":
        return dense_mask(document_BT, window=window)
    if bool((document_BT <= 1).all() and (document_BT.diff() <= 0).all()):
        return Causal(window)
    return group_documents(document_BT, window=window)


def dense_mask(document_BT: torch.Tensor, *, window: int | None = None) -> torch.Tensor:
    """The same as a boolean [B, 1, T, T]: right everywhere, slow. Padding sees padding, so every query sees a key."""
    same_BTT = document_BT[:, :, None] == document_BT[:, None, :]
    causal_BTT = same_BTT.tril()
    return (causal_BTT if window is None else causal_BTT.triu(1 - window))[:, None]


def attention(
    q_BTHW: torch.Tensor, k_BLKW: torch.Tensor, *, v_BLKW: torch.Tensor, mask: Mask, softcap: float | None = None
) -> torch.Tensor:
    """Attention of every query over the keys that `mask` lets it see, [B, T, H, W]; H is a multiple of K.

    A `softcap` bounds the scores (softcap.py).
    """
    if isinstance(mask, Groups):
        return mask.attend(q_BTHW, k_BLKW, v_BTKW=v_BLKW, groups=mask, softcap=softcap)
    q, k, v = (x.transpose(1, 2) for x in (q_BTHW, k_BLKW, v_BLKW))
    gqa = q.shape[1] != k.shape[1]
    if isinstance(mask, BlockMask):
        flex = flex_attention if torch.compiler.is_compiling() else _flex()
        capping = None if softcap is None else _capping(softcap)  # the compiler warns of cached functions
        out = flex(q, k, v, score_mod=capping, block_mask=mask, enable_gqa=gqa)
    elif isinstance(mask, torch.Tensor) and softcap is not None:
        out = capped_attention(q, k, v_BKLW=v, seen_B1TL=mask, cap=softcap)
    elif isinstance(mask, torch.Tensor):
        out = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=gqa)
    elif q.device.type == "cpu":
        out = attention_cpu.causal(q, k, v_BKTW=v, window=mask.window, softcap=softcap)
    else:
        out = attention_cpu.fused(q, k, v_BKTW=v, window=mask.window, softcap=softcap)
    return out.transpose(1, 2)


@cache
def _flex():
    return torch.compile(flex_attention)


@cache
def _capping(softcap: float) -> Callable[..., torch.Tensor]:
    """What FlexAttention does to scores; one function for each cap, which is compiled once."""
    return lambda score, b, h, query, key: soft_cap(score, softcap)


@cache
def _create_block_mask():
    return torch.compile(create_block_mask)


def _block_mask(document_BT: torch.Tensor, window: int | None) -> BlockMask:
    def visible(b, h, query, key):
        seen = (query >= key) & (document_BT[b, query] == document_BT[b, key])
        return seen if window is None else seen & (query - key < window)

    sequences, length = document_BT.shape
    return _create_block_mask()(visible, sequences, None, length, length, device=document_BT.device)

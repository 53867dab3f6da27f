"""Activation checkpointing: what blocks keep of the forward pass, and what the backward pass recomputes."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from mm1.model.moe import SparseFeedForward
from mm1.train.compilation import blocks_of

aten = torch.ops.aten
COSTLY = {
    *(aten.mm.default, aten.addmm.default, aten._grouped_mm.default),
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.higher_order.flex_attention,
    torch.ops._c10d_functional.all_to_all_single.default,
    torch.ops._c10d_functional.all_reduce.default,
}
"""What selective checkpointing keeps: matrix products, attention, results of communication.

Attention by blocks on a CPU is recomputed: it changes its batched products in place, which kept ones don't allow.
"""


def checkpoint_activations(model: nn.Module, mode: Literal["none", "selective", "full"]) -> None:
    """Let blocks keep only their input, or only what is costly; the backward pass recomputes the rest.

    In sparse blocks `selective` is for the attention only: nearly all that experts keep are matrix products.
    """
    if mode == "none":
        return
    keywords: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # blocks draw no random numbers
    if mode == "selective":
        keywords["context_fn"] = partial(create_selective_checkpoint_contexts, _keeps)
    for block in blocks_of(model):
        # experts that are an FSDP unit gather their weights once, but selection needs the same operations twice
        is_sparse = any(isinstance(module, SparseFeedForward) for module in block.children())
        region = block.get_submodule("attention") if mode == "selective" and is_sparse else block
        region.forward = _checkpointed(region.forward, keywords)  # type: ignore[method-assign]


def _checkpointed(forward: Callable[..., Any], keywords: dict[str, Any]) -> Callable[..., Any]:
    """`forward` with its activations checkpointed, as a plain function: the compiler doesn't look into a `partial`."""

    def recomputed(*inputs: Any, **named: Any) -> Any:
        return checkpoint(forward, *inputs, **named, **keywords)

    return recomputed


def _keeps(context: Any, operation: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in COSTLY else CheckpointPolicy.PREFER_RECOMPUTE

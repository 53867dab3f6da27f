"""What is applied to a model from outside before training: parallelism, activation checkpointing, compilation.

The model knows nothing of ranks. They form a grid of dp_replicate x dp_shard x tp. The ranks of a tensor-parallel group
have the same sequences, and so are one data rank; data ranks have different sequences. Experts are distributed over
ranks of one dp_shard group, which exchange the tokens.
"""

import importlib.util
import logging
import math
import os
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from mm1 import dist
from mm1.config.base import ConfigError
from mm1.config.model import DecoderConfig
from mm1.config.run import ParallelConfig, RunConfig
from mm1.model.layers import SwiGLU
from mm1.model.moe import SparseFeedForward
from mm1.train.expert_parallel import ExpertParallel

log = logging.getLogger("mm1")

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


@dataclass(frozen=True, slots=True)
class ParallelDims:
    """The grid of ranks, and this rank's groups in it; a single rank has no mesh."""

    dp_replicate: int
    dp_shard: int
    tp: int
    ep: int
    dense: DeviceMesh | None  # dp_replicate, dp_shard, tp
    sparse: DeviceMesh | None  # dp_replicate, expert_shard, ep, tp: dp_shard is expert_shard x ep

    @property
    def data_ranks(self) -> int:
        """How many ranks have sequences of their own."""
        return self.dp_replicate * self.dp_shard

    @property
    def data_rank(self) -> int:
        """Which sequences this rank has: the ranks of a tensor-parallel group have the same."""
        return dist.rank() // self.tp


def parallel_dims(run: RunConfig) -> ParallelDims:
    """The grid that `run.parallel` asks for, on the ranks of this job.

    Raises:
        ConfigError: it is not a grid of so many ranks, or the model or the batch can't be divided by it.
    """
    parallel, world = run.parallel, dist.world()
    others = parallel.dp_replicate * parallel.tp
    dp_shard = parallel.dp_shard or max(1, world // others)
    if others * dp_shard != world:
        raise ConfigError(
            f"parallel.dp_replicate x dp_shard x tp = {parallel.dp_replicate} x {dp_shard} x {parallel.tp} is "
            f"{others * dp_shard}, but there are {world} ranks; start so many (torchrun --nproc-per-node) or change a "
            "field"
        )
    _check_divisible(run, parallel, dp_shard=dp_shard)
    if world == 1:
        return ParallelDims(1, 1, 1, 1, None, None)
    device = dist.device().type
    names = ("dp_replicate", "dp_shard", "tp")
    dense = init_device_mesh(device, (parallel.dp_replicate, dp_shard, parallel.tp), mesh_dim_names=names)
    sparse = None
    if parallel.ep > 1:
        sizes = (parallel.dp_replicate, dp_shard // parallel.ep, parallel.ep, parallel.tp)
        sparse = init_device_mesh(device, sizes, mesh_dim_names=("dp_replicate", "expert_shard", "ep", "tp"))
    return ParallelDims(parallel.dp_replicate, dp_shard, parallel.tp, parallel.ep, dense, sparse)


def _check_divisible(run: RunConfig, parallel: ParallelConfig, *, dp_shard: int) -> None:
    decoder, experts, data_ranks = run.model.decoder, run.model.decoder.sparse.experts, parallel.dp_replicate * dp_shard
    for name in ("heads", "kv_heads", "mlp_width"):
        if getattr(decoder, name) % parallel.tp:
            raise ConfigError(
                f"parallel.tp is {parallel.tp}, but model.decoder.{name} {getattr(decoder, name)} is no multiple of it"
            )
    if parallel.ep > 1 and (experts % parallel.ep or not experts):
        raise ConfigError(f"parallel.ep is {parallel.ep}, but the {experts} experts are no multiple of it")
    if dp_shard % parallel.ep:
        raise ConfigError(f"parallel.ep {parallel.ep} must divide the {dp_shard} ranks that share weights (dp_shard)")
    expert_shard = dp_shard // parallel.ep
    if parallel.ep > 1 and (decoder.mlp_width % expert_shard or decoder.width % expert_shard):
        raise ConfigError(
            f"an expert's matrices of {decoder.width} and {decoder.mlp_width} rows can't be divided evenly over the "
            f"{expert_shard} ranks that share them (dp_shard / ep); change parallel.ep"
        )
    if run.batch_size % (run.micro_batch_size * data_ranks):
        raise ConfigError(
            f"batch_size {run.batch_size} must be a multiple of micro_batch_size x ranks with sequences of their own = "
            f"{run.micro_batch_size} x {data_ranks}; change one of them"
        )


def parallelize(model: nn.Module, run: RunConfig, *, dims: ParallelDims, precision: torch.dtype) -> None:
    """Shard the model's weights, distribute its experts, checkpoint and compile its blocks, all in place.

    The model has no memory yet (it is on the meta device). Parameter names don't change.
    """
    if dims.dense is not None and dims.tp > 1:
        for block in model.get_submodule("decoder.blocks").children():
            parallelize_module(block, dims.dense["tp"], _tensor_plan(block, run.model.decoder))
    if dims.sparse is not None:
        for experts in _experts(model):
            parallelize_module(experts, dims.sparse["ep"], ExpertParallel())
    _checkpoint_activations(model, run.parallel.activation_checkpointing)
    compile_blocks(model, run.compile, dist.device())
    if dims.dense is not None:
        _shard(model, dims, precision=precision)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of the encoder, and of the decoder if the model has one."""
    towers = [part for name, part in model.named_children() if name in ("vision", "decoder")]
    return [block for tower in towers for block in tower.get_submodule("blocks").children()]


def _tensor_plan(block: nn.Module, config: DecoderConfig) -> dict[str, ParallelStyle]:
    """How the ranks divide heads and inner channels; the inputs and outputs of the block are whole on each rank."""
    whole = PrepareModuleInput(input_layouts=(Replicate(),), desired_input_layouts=(Replicate(),))
    plan: dict[str, ParallelStyle] = {
        "attention": whole,
        **{f"attention.{name}": ColwiseParallel() for name in ("query", "key", "value")},
        "attention.out": RowwiseParallel(),
    }
    if config.qk_norm:  # one weight for all heads: its gradients are summed over the ranks
        norm = SequenceParallel(sequence_dim=2, use_local_output=True)
        plan |= {"attention.query_norm": norm, "attention.key_norm": norm}
    if isinstance(block.feed_forward, SwiGLU):
        plan |= {
            "feed_forward": whole,
            "feed_forward.gate": ColwiseParallel(),
            "feed_forward.up": ColwiseParallel(),
            "feed_forward.down": RowwiseParallel(),
        }
    return plan


def _experts(model: nn.Module) -> list[nn.Module]:
    return [module.experts for module in model.modules() if isinstance(module, SparseFeedForward)]


def _shard(model: nn.Module, dims: ParallelDims, *, precision: torch.dtype) -> None:
    """Apply FSDP2: every block is a unit, and so is the rest of every part but the decoder.

    The decoder's embedding and output belong to the root, whose weights stay gathered until the end of the backward
    pass: logits are computed after its forward pass. Gradients are summed in fp32 and not averaged, since the loss of
    a step is already divided by the weight of the whole step.
    """
    assert dims.dense is not None
    policy = MixedPrecisionPolicy(
        param_dtype=None if precision == torch.float32 else precision,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # rotary angles stay in fp32
    )
    replicated = dims.dp_replicate > 1
    mesh = dims.dense["dp_replicate", "dp_shard"] if replicated else dims.dense["dp_shard"]
    if dims.sparse is not None:
        expert_mesh = dims.sparse["dp_replicate", "expert_shard"] if replicated else dims.sparse["expert_shard"]
        for experts in _experts(model):  # along the rows of their matrices: a rank may have a single expert
            fully_shard(experts, mesh=expert_mesh, mp_policy=policy, shard_placement_fn=lambda weight: Shard(1))
    for unit in [*_blocks(model), *(part for name, part in model.named_children() if name != "decoder")]:
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(model.get_submodule("vision"), "summary")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other
    # the encoder's patches are a view; nothing writes into it
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")


@torch.no_grad()
def init_weights(model: nn.Module, seed: int) -> None:
    """Allocate the model on this rank's device and fill it with its initial weights, the same for every grid."""
    model.to_empty(device=dist.device())
    model.initialise(seed)  # type: ignore[operator]


def gradient_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """The norm of the gradients over all ranks, however they are sharded: elements with copies count once."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if dist.world() == 1:
        return nn.utils.get_total_norm(gradients)
    squares: list[torch.Tensor] = []
    for gradient in gradients:
        copies = 1
        if isinstance(gradient, DTensor):
            mesh = gradient.device_mesh
            copied = (mesh.size(axis) for axis, placed in enumerate(gradient.placements) if placed.is_replicate())
            copies = dist.world() // mesh.size() * math.prod(copied)
        squares.append(torch.linalg.vector_norm(_local(gradient), dtype=torch.float32).square() / copies)
    return dist.sum_over_ranks(torch.stack(squares).sum()).sqrt()


def clip(parameters: Iterable[nn.Parameter], *, largest: float) -> float:
    """The norm of the gradients before they are scaled down to a norm of at most `largest`."""
    parameters = [*parameters]
    norm = gradient_norm(parameters)
    gradients = [_local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp(max=1.0))
    return float(norm)


def _local(x: torch.Tensor) -> torch.Tensor:
    return x.to_local() if isinstance(x, DTensor) else x


def _checkpoint_activations(model: nn.Module, mode: Literal["none", "selective", "full"]) -> None:
    """Let blocks keep only their input, or only what is costly; the backward pass recomputes the rest.

    In sparse blocks `selective` is for the attention only: nearly all that experts keep are matrix products.
    """
    if mode == "none":
        return
    keywords: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # blocks draw no random numbers
    if mode == "selective":
        keywords["context_fn"] = partial(create_selective_checkpoint_contexts, _keeps)
    for block in _blocks(model):
        # experts that are an FSDP unit gather their weights once, but selection needs the same operations twice
        is_sparse = any(isinstance(module, SparseFeedForward) for module in block.children())
        region = block.get_submodule("attention") if mode == "selective" and is_sparse else block
        region.forward = partial(checkpoint, region.forward, **keywords)  # type: ignore[method-assign]


def _keeps(context: Any, operation: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in COSTLY else CheckpointPolicy.PREFER_RECOMPUTE


def compile_blocks(model: nn.Module, mode: Literal["auto", "always", "never"], device: torch.device) -> None:
    """Compile the blocks of the encoder and the decoder in place, if that pays and is possible.

    `auto` compiles on a GPU. On a CPU a compiled step is 1.03 times as fast and the compiler takes about half a
    minute, so only runs of more than twenty minutes gain: there it takes `always`. Parameter names don't change.

    Raises:
        ConfigError: `always`, but this machine has no compiler for the device.
    """
    if mode == "never" or (mode == "auto" and device.type != "cuda"):
        return
    missing = missing_compiler(device)
    if missing and mode == "always":
        raise ConfigError(f"compile=always needs {missing}; install it, or set compile=never")
    if missing:
        log.warning("not compiled: %s is missing", missing)
        return
    for block in _blocks(model):
        block.compile()


def missing_compiler(device: torch.device) -> str | None:
    """What this machine lacks to compile for the device; None if nothing."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton"
    names = [os.environ.get("CXX", "g++"), "clang++"]
    return None if any(shutil.which(name) for name in names) else f"a C++ compiler ({' or '.join(names)})"

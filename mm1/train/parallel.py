"""What is applied to a model from outside before it trains: how it is spread over ranks, what is recomputed, compiled.

The model knows no ranks. Ranks stand in a grid of replicas x shard x tensor. Those of one `tensor` line share their
rows; every other pair has other rows. Experts are dealt to ranks of one `shard` line, which send them their places.
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
from mm1.model.mllm import MLLM
from mm1.model.moe import SparseFeedForward
from mm1.objectives.contrastive import ContrastiveModel
from mm1.train.expert_parallel import DealtExperts

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
"""What selective recomputation keeps: products, attention, what came from other ranks.

Attention by blocks on a CPU is made again: its batched products are changed in place, which a kept one must not be.
"""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where this rank stands in the grid, and the groups it belongs to; no mesh where there is one rank."""

    dp_replicate: int
    dp_shard: int
    tp: int
    ep: int
    dense: DeviceMesh | None  # replicas, dp_shard, tensor
    sparse: DeviceMesh | None  # replicas, rest, expert, tensor: `shard` cut into rest x expert

    @property
    def data_ranks(self) -> int:
        """Among how many the rows of a step are dealt."""
        return self.dp_replicate * self.dp_shard

    @property
    def data_rank(self) -> int:
        """Which of them this rank gets: the same for ranks of one `tensor` line."""
        return dist.rank() // self.tp


def layout(run: RunConfig) -> Layout:
    """The grid that `run.parallel` asks for, on the ranks that there are.

    Raises:
        ConfigError: they do not fit, or the model or the rows cannot be cut like that.
    """
    asked, world = run.parallel, dist.world()
    others = asked.dp_replicate * asked.tp
    dp_shard = asked.dp_shard or max(1, world // others)
    if others * dp_shard != world:
        raise ConfigError(
            f"parallel.dp_replicate x dp_shard x tp = {asked.dp_replicate} x {dp_shard} x {asked.tp} is "
            f"{others * dp_shard}, but there are {world} ranks; start so many (torchrun --nproc-per-node) or change a "
            "field"
        )
    _fits(run, asked, dp_shard=dp_shard)
    if world == 1:
        return Layout(1, 1, 1, 1, None, None)
    kind = dist.device().type
    names = ("dp_replicate", "dp_shard", "tp")
    dense = init_device_mesh(kind, (asked.dp_replicate, dp_shard, asked.tp), mesh_dim_names=names)
    sparse = None
    if asked.ep > 1:
        cut = (asked.dp_replicate, dp_shard // asked.ep, asked.ep, asked.tp)
        sparse = init_device_mesh(kind, cut, mesh_dim_names=("dp_replicate", "rest", "ep", "tp"))
    return Layout(asked.dp_replicate, dp_shard, asked.tp, asked.ep, dense, sparse)


def _fits(run: RunConfig, asked: ParallelConfig, *, dp_shard: int) -> None:
    decoder, experts, data_ranks = run.model.decoder, run.model.decoder.sparse.experts, asked.dp_replicate * dp_shard
    for name in ("heads", "kv_heads", "mlp_width"):
        if getattr(decoder, name) % asked.tp:
            raise ConfigError(
                f"parallel.tp is {asked.tp}, but model.decoder.{name} {getattr(decoder, name)} is no multiple"
            )
    if asked.ep > 1 and (experts % asked.ep or not experts):
        raise ConfigError(f"parallel.ep is {asked.ep}, but the {experts} experts are no multiple of it")
    if dp_shard % asked.ep:
        raise ConfigError(f"parallel.ep {asked.ep} must divide the {dp_shard} ranks that share weights (dp_shard)")
    rest = dp_shard // asked.ep
    if asked.ep > 1 and (decoder.mlp_width % rest or decoder.width % rest):
        raise ConfigError(
            f"an expert's matrices of {decoder.width} and {decoder.mlp_width} rows can't be cut evenly over the {rest} "
            f"ranks that share them (dp_shard / expert); change parallel.ep"
        )
    if run.batch_size % (run.micro_batch_size * data_ranks):
        raise ConfigError(
            f"batch_size {run.batch_size} must be a multiple of micro_batch_size x ranks with rows of their own = "
            f"{run.micro_batch_size} x {data_ranks}; change one of them"
        )


def spread(model: MLLM | ContrastiveModel, run: RunConfig, *, over: Layout, precision: torch.dtype) -> None:
    """Cut the model's weights, deal its experts, recompute and compile its blocks, all in place.

    The model has no memory yet (it is on the meta device); parameter names don't change.
    """
    if over.dense is not None and over.tp > 1:
        for block in model.decoder.blocks:
            parallelize_module(block, over.dense["tp"], _tensor_plan(block, model.decoder.config))
    if over.sparse is not None:
        for experts in _experts(model):
            parallelize_module(experts, over.sparse["ep"], DealtExperts())
    _checkpoint_activations(model, run.parallel.activation_checkpointing)
    compile_blocks(model, run.compile, dist.device())
    if over.dense is not None:
        _shard(model, over, precision=precision)


def _tensor_plan(block: nn.Module, config: DecoderConfig) -> dict[str, ParallelStyle]:
    """Heads and inner channels are dealt to the ranks; what goes in and what comes out each rank has whole."""
    whole = PrepareModuleInput(input_layouts=(Replicate(),), desired_input_layouts=(Replicate(),))
    plan: dict[str, ParallelStyle] = {
        "attention": whole,
        **{f"attention.{name}": ColwiseParallel() for name in ("query", "key", "value")},
        "attention.out": RowwiseParallel(),
    }
    if config.qk_norm:  # one weight for all heads, whose gradients are summed over the ranks that have them
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


def _experts(model: MLLM | ContrastiveModel) -> list[nn.Module]:
    return [module.experts for module in model.modules() if isinstance(module, SparseFeedForward)]


def _shard(model: MLLM | ContrastiveModel, over: Layout, *, precision: torch.dtype) -> None:
    """FSDP2: each block a unit, the encoder's rest and the connector one each, embedding and output with the root.

    Logits are made after the root's forward pass, which keeps its weights whole until the backward pass is through.
    Gradients are summed and not averaged, as a step's loss is divided by the weight of all its rows; in fp32.
    """
    assert over.dense is not None
    policy = MixedPrecisionPolicy(
        param_dtype=None if precision == torch.float32 else precision,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # rotary angles stay in fp32
    )
    mesh = over.dense["dp_replicate", "dp_shard"] if over.dp_replicate > 1 else over.dense["dp_shard"]
    if over.sparse is not None:
        rest = over.sparse["dp_replicate", "rest"] if over.dp_replicate > 1 else over.sparse["rest"]
        for experts in _experts(model):  # cut along their rows: of experts a rank may have but one
            fully_shard(experts, mesh=rest, mp_policy=policy, shard_placement_fn=lambda weight: Shard(1))
    units: list[nn.Module] = [*model.vision.blocks, model.vision, *model.decoder.blocks]
    if isinstance(model, MLLM):
        units.append(model.connector)
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(model.vision, "summary")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other
    # the encoder's patches are a view; nothing here writes into one
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")


@torch.no_grad()
def materialise(model: MLLM | ContrastiveModel, seed: int) -> None:
    """Give the model memory on this rank's device and its initial weights, the same for every layout."""
    model.to_empty(device=dist.device())
    model.initialise(seed)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """The norm of the gradients over all ranks, each element once, however it is cut and copied."""
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
    return dist.total(torch.stack(squares).sum()).sqrt()


def clip(parameters: Iterable[nn.Parameter], *, largest: float) -> float:
    """The `gradient_norm`, before the gradients are scaled to at most `largest`."""
    parameters = [*parameters]
    norm = gradient_norm(parameters)
    gradients = [_local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp(max=1.0))
    return float(norm)


def _local(x: torch.Tensor) -> torch.Tensor:
    return x.to_local() if isinstance(x, DTensor) else x


def _checkpoint_activations(model: MLLM | ContrastiveModel, wanted: Literal["none", "selective", "full"]) -> None:
    """Let blocks keep only their input, or only what is costly; the rest is made again in the backward pass.

    Of sparse blocks `selective` takes the attention: what experts keep are products, nearly all.
    """
    if wanted == "none":
        return
    keywords: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # nothing is drawn in a block
    if wanted == "selective":
        keywords["context_fn"] = partial(create_selective_checkpoint_contexts, _keeps)
    for block in [*model.vision.blocks, *model.decoder.blocks]:
        # experts that are a unit of FSDP gather weights once only, and selection must see the same twice
        apart = wanted == "selective" and any(isinstance(module, SparseFeedForward) for module in block.children())
        region = block.attention if apart else block
        region.forward = partial(checkpoint, region.forward, **keywords)


def _keeps(context: Any, operation: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in COSTLY else CheckpointPolicy.PREFER_RECOMPUTE


def compile_blocks(
    model: MLLM | ContrastiveModel, wanted: Literal["auto", "always", "never"], device: torch.device
) -> None:
    """Compile the decoder's and the encoder's blocks in place, where it pays and can be done.

    `auto` compiles on a GPU. On a CPU a compiled step is 1.03 times as fast and the compiler takes about half a
    minute, so it pays from some twenty minutes of training on: `always` asks for it. Parameter names don't change.

    Raises:
        ConfigError: `always`, but this machine has no compiler for the device.
    """
    if wanted == "never" or (wanted == "auto" and device.type != "cuda"):
        return
    missing = missing_compiler(device)
    if missing and wanted == "always":
        raise ConfigError(f"compile=always needs {missing}; install it, or set compile=never")
    if missing:
        log.warning("not compiled: %s is missing", missing)
        return
    for part in (model.vision, model.decoder):
        for block in part.blocks:
            block.compile()


def missing_compiler(device: torch.device) -> str | None:
    """What compiling for the device needs and this machine lacks; None when nothing."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton"
    names = [os.environ.get("CXX", "g++"), "clang++"]
    return None if any(shutil.which(name) for name in names) else f"a C++ compiler ({' or '.join(names)})"

"""What is applied to a model from outside before training: parallelism, activation checkpointing, compilation.

The model knows nothing of ranks. They form a grid of dp_replicate x dp_shard x tp. The ranks of a tensor-parallel group
have the same sequences, and so are one data rank; data ranks have different sequences. Experts are distributed over
ranks of one dp_shard group, which exchange the tokens.
"""

import logging
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ParallelStyle,
    PrepareModuleInput,
    SequenceParallel,
    parallelize_module,
)

from mm1 import dist
from mm1.config.base import ConfigError
from mm1.config.model import DecoderConfig
from mm1.config.run import ParallelConfig, RunConfig
from mm1.model.layers import SwiGLU
from mm1.model.moe import SparseFeedForward
from mm1.train.activation_checkpointing import checkpoint_activations
from mm1.train.adapters import AdaptedColwise, AdaptedRowwise
from mm1.train.compilation import blocks_of, compile_blocks
from mm1.train.expert_parallel import ExpertParallel

log = logging.getLogger("mm1")


@dataclass(frozen=True, slots=True)
class ParallelDims:
    """The grid of ranks, and this rank's groups in it. A single rank in fp32 has no mesh: it casts nothing."""

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
    if world == 1 and dist.resolve_precision(run.precision, dist.device()) == torch.float32:
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
    checkpoint_activations(model, run.parallel.activation_checkpointing)
    compile_blocks(model, run.compile, device=dist.device())
    if dims.dense is not None:
        _shard(model, dims, precision=precision)


def _tensor_plan(block: nn.Module, config: DecoderConfig) -> dict[str, ParallelStyle]:
    """How the ranks divide heads and inner channels; the inputs and outputs of the block are whole on each rank."""
    if config.qk_norm_across_heads:
        raise ConfigError(
            "parallel.tp divides the heads of a layer, but model.decoder.qk_norm_across_heads has one norm for all of "
            "them; set parallel.tp=1"
        )
    whole = PrepareModuleInput(input_layouts=(Replicate(),), desired_input_layouts=(Replicate(),))
    plan: dict[str, ParallelStyle] = {
        "attention": whole,
        **{f"attention.{name}": AdaptedColwise() for name in ("query", "key", "value")},
        "attention.out": AdaptedRowwise(),
    }
    if config.qk_norm:  # one weight for all heads: its gradients are summed over the ranks
        norm = SequenceParallel(sequence_dim=2, use_local_output=True)
        plan |= {"attention.query_norm": norm, "attention.key_norm": norm}
    if isinstance(block.feed_forward, SwiGLU):
        plan |= {
            "feed_forward": whole,
            "feed_forward.gate": AdaptedColwise(),
            "feed_forward.up": AdaptedColwise(),
            "feed_forward.down": AdaptedRowwise(),
        }
    return plan


def _experts(model: nn.Module) -> list[nn.Module]:
    return [module.experts for module in model.modules() if isinstance(module, SparseFeedForward)]


def _shard(model: nn.Module, dims: ParallelDims, *, precision: torch.dtype) -> None:
    """Apply FSDP2: every block is a unit, and so is the rest of every part but the decoder.

    It alone decides the types, on one rank too: weights are stored in fp32 and gathered in `precision`, which is then
    the type of all activations. Modules compute in fp32 what needs it: rotary angles, router logits, losses, and the
    statistics of norms and softmax. torch's autocast would choose a type for each operation, other ones from release
    to release, and keep the residual stream in fp32 on one rank only.

    The decoder's embedding and output belong to the root, whose weights stay gathered until the end of the backward
    pass: logits are computed after its forward pass. On a rank that holds all weights everything stays gathered, as
    `prepare_backward` says. Gradients are summed in fp32 and not averaged, since the loss of a step is already
    divided by the weight of the whole step.
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
    for unit in [*blocks_of(model), *(part for name, part in model.named_children() if name != "decoder")]:
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=dims.dp_shard > 1)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(model.get_submodule("vision"), "summary")
    for fsdp_unit in _units(model):
        fsdp_unit.set_gradient_divide_factor(1.0)
        fsdp_unit.set_force_sum_reduction_for_comms(True)  # gloo has no other
    # the encoder's patches are a view; nothing writes into it
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")


def prepare_backward(model: nn.Module, dims: ParallelDims, *, last: bool) -> None:
    """Prepare a model for the backward pass of a micro-batch, the `last` of its step or an earlier one.

    A rank that holds all weights (`dp_shard` is 1) casts them once a step, before the first micro-batch, and sums
    gradients over ranks once, after the last. Casting before every pass would save 2 bytes a weight and cost four
    launches a tensor and pass: on an H200 a step of 1.2B in four micro-batches took 1.43 s so, and its kernels a third
    of that. Ranks that share weights gather them for each pass, and let go of them after it.
    """
    if dims.dense is None or dims.dp_shard > 1:
        return
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(last)
    model.set_reshard_after_backward(last)
    for unit in _units(model):  # also those that the forward pass didn't use: FSDP2 looks for their gradients too
        unit.unshard()


def release_gathered(model: nn.Module) -> None:
    """Let go of the gathered weights that a forward pass without a backward pass has left.

    The next pass would otherwise compute with them, although the optimizer may have changed the weights meanwhile.
    """
    for unit in _units(model):
        unit.reshard()


def _units(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@torch.no_grad()
def init_weights(model: nn.Module, seed: int | None) -> None:
    """Allocate the model on this rank's device and fill it with its initial weights, the same for every grid.

    Without a `seed` the weights are left as they are in memory: a checkpoint will be loaded over them.
    """
    model.to_empty(device=dist.device())
    if seed is not None:
        model.initialise(seed)  # type: ignore[operator]


def gradient_norm(parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """The norm of the gradients over all ranks, however they are sharded: elements with copies count once."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if dist.world() == 1:
        return nn.utils.get_total_norm([_local(gradient) for gradient in gradients])
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
    """The norm of the gradients before they are scaled down to a norm of at most `largest`.

    The host waits once, for the norm and the factor; gradients with a smaller norm are not touched.
    """
    parameters = [*parameters]
    norm = gradient_norm(parameters)
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    norm_read, factor_read = torch.stack((norm, factor)).tolist()
    if factor_read < 1:
        gradients = [_local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, factor)
    return norm_read


def _local(x: torch.Tensor) -> torch.Tensor:
    return x.to_local() if isinstance(x, DTensor) else x

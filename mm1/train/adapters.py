"""LoRA in a run: which layers get adapters, and what else is trained beside them."""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

from mm1.config.base import ConfigError
from mm1.config.run import LoRAConfig, RunConfig
from mm1.model.lora import LoRALinear, is_adapter
from mm1.model.mllm import MLLM
from mm1.objectives.index import generates_text
from mm1.train.parameters import require_matching


def check_adapters(run: RunConfig) -> None:
    """Check that a run with `lora` can have adapters.

    Raises:
        ConfigError: the run trains an encoder, another setting needs plain linear layers, or as `add_adapters`.
    """
    if run.lora is None:
        return
    if not generates_text(run):
        raise ConfigError(
            f"lora adapts a decoder that writes text, but {run.objective} trains an encoder; set lora=null"
        )
    if run.fp8:
        raise ConfigError("fp8=true replaces the linear layers that lora adapts; set fp8=false or lora=null")
    with torch.device("meta"):
        add_adapters(MLLM(run.model), run.lora)


def add_adapters(model: nn.Module, lora: LoRAConfig) -> None:
    """Put an adapter beside each layer that `lora.targets` names, in place; only adapters and `lora.full` are trained.

    Layers are the linear ones of the decoder's blocks. A router is none of them: it decides in fp32 which expert is
    asked, and experts are one tensor each, without a layer of their own.

    Raises:
        ConfigError: a pattern matches nothing, or the rank is above that of a layer.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if name.startswith("decoder.blocks.") and isinstance(module, nn.Linear) and not name.endswith(".router")
    }
    for pattern in lora.targets:
        for name in require_matching(
            pattern, layers, field="lora.targets", kind="linear layer of the decoder's blocks"
        ):
            largest = min(layers[name].in_features, layers[name].out_features)
            if lora.rank > largest:
                raise ConfigError(
                    f"lora.rank is {lora.rank}, but {name} has {layers[name].in_features} inputs and "
                    f"{layers[name].out_features} outputs; set lora.rank={largest} or less, or other lora.targets"
                )
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, LoRALinear(layers[name], rank=lora.rank, scale=lora.scale))
    parameters = dict(model.named_parameters())
    full = {name for pattern in lora.full for name in require_matching(pattern, parameters, field="lora.full")}
    for name, parameter in parameters.items():
        if not is_adapter(name) and name not in full:
            parameter.requires_grad_(False)


class AdaptedColwise(ColwiseParallel):
    """Splits the outputs of a linear layer over ranks, those of its adapter's B alike; A is whole on each."""

    def _partition_linear_fn(self, name: str, module: nn.Module, device_mesh: DeviceMesh) -> None:
        _distribute(module, device_mesh, Replicate() if name == "lora_A" else Shard(0))


class AdaptedRowwise(RowwiseParallel):
    """Splits the inputs of a linear layer over ranks, those of its adapter's A alike; B is whole on each."""

    def _partition_linear_fn(self, name: str, module: nn.Module, device_mesh: DeviceMesh) -> None:
        _distribute(module, device_mesh, Replicate() if name == "lora_B" else Shard(1))


def _distribute(module: nn.Module, mesh: DeviceMesh, placement: Placement) -> None:
    """Distribute the parameters of a module; a bias of split inputs, which is no matrix, is whole on each rank."""
    for leaf, parameter in [*module.named_parameters(recurse=False)]:
        whole = Replicate() if placement.is_shard(parameter.ndim) else placement
        distributed = distribute_tensor(parameter, mesh, [whole])
        module.register_parameter(leaf, nn.Parameter(distributed, requires_grad=parameter.requires_grad))

"""LoRA in a run: which layers get adapters, and what else is trained beside them."""

from torch import nn

from mm1.config.base import ConfigError
from mm1.config.run import LoRAConfig, RunConfig
from mm1.model.lora import LoRALinear, is_adapter
from mm1.objectives.index import generates_text
from mm1.train.parameters import require_matching


def check_adapters(run: RunConfig) -> None:
    """Check that a run with `lora` can have adapters.

    Raises:
        ConfigError: the run trains an encoder, or another setting needs plain linear layers.
    """
    if run.lora is None:
        return
    if not generates_text(run):
        raise ConfigError(
            f"lora adapts a decoder that writes text, but {run.objective} trains an encoder; set lora=null"
        )
    if run.parallel.tp > 1:
        raise ConfigError(
            f"parallel.tp is {run.parallel.tp}, but adapters are not split over ranks; set parallel.tp=1 (weights are "
            "sharded over parallel.dp_shard ranks), or lora=null"
        )
    if run.fp8:
        raise ConfigError("fp8=true replaces the linear layers that lora adapts; set fp8=false or lora=null")


def add_adapters(model: nn.Module, lora: LoRAConfig) -> None:
    """Put an adapter beside each layer that `lora.targets` names, in place; only adapters and `lora.full` are trained.

    Layers are the linear ones of the decoder's blocks. A router is none of them: it decides in fp32 which expert is
    asked, and experts are one tensor each, without a layer of their own.

    Raises:
        ConfigError: a pattern matches nothing.
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
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, LoRALinear(layers[name], rank=lora.rank, scale=lora.scale))
    parameters = dict(model.named_parameters())
    full = {name for pattern in lora.full for name in require_matching(pattern, parameters, field="lora.full")}
    for name, parameter in parameters.items():
        if not is_adapter(name) and name not in full:
            parameter.requires_grad_(False)

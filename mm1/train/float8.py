"""Matrix products of the blocks in float8 (torchao), of which tensor cores that have it do twice as many as in bf16.

Weights, activations and gradients stay in their types. Each is rounded to 8 bits with one scale for the tensor, right
before the product that reads it (arXiv 2209.05433; torchao's `tensorwise`).
"""

import importlib.util

import torch
from torch import nn

from mm1.config.base import ConfigError
from mm1.config.run import RunConfig
from mm1.train.compilation import blocks_of

FP8_SINCE = (8, 9)
"""The first compute capability with float8 products (NVIDIA's Ada and Hopper)."""

MULTIPLE = 16
"""Float8 products take matrices whose sides are multiples of this."""


def check_float8(run: RunConfig, device: torch.device) -> None:
    """Check that a run with `fp8=true` can use it.

    Raises:
        ConfigError: torchao is missing, the device has no float8, or matrices are split over ranks.
    """
    if not run.fp8:
        return
    if not importlib.util.find_spec("torchao"):
        raise ConfigError("fp8=true needs torchao; pip install 'mm1[fp8]', or set fp8=false")
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if capability is None or capability < FP8_SINCE:
        this_has = "a CPU" if capability is None else f"compute capability {capability[0]}.{capability[1]}"
        raise ConfigError(
            f"fp8=true needs a GPU of compute capability {FP8_SINCE[0]}.{FP8_SINCE[1]} or higher (L40S, H100); this is "
            f"{this_has}; set fp8=false"
        )
    if run.parallel.tp > 1:
        raise ConfigError(f"fp8=true takes whole matrices, but parallel.tp is {run.parallel.tp}; set one of them back")


def use_float8(model: nn.Module, *, emulate: bool = False) -> None:
    """Let the linear layers of the blocks compute in float8, in place; names and weights stay.

    Routers stay in fp32, and layers whose sides are no multiples of 16 stay as they are, as do embedding, output and
    connector. `emulate` rounds to float8 and multiplies in the type of the input, on any device.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    def takes(module: nn.Module, name: str) -> bool:
        sides = (module.in_features, module.out_features) if isinstance(module, nn.Linear) else (1,)
        return not any(side % MULTIPLE for side in sides) and not name.endswith("router")

    for block in blocks_of(model):
        scales = {name: layer.initial_scale for name, layer in block.named_modules() if isinstance(layer, nn.Linear)}
        convert_to_float8_training(block, module_filter_fn=takes, config=Float8LinearConfig(emulate=emulate))
        for name, scale in scales.items():  # torchao makes new layers, which don't know it
            block.get_submodule(name).initial_scale = scale  # type: ignore[assignment]

"""LoRA: a trained product of two thin matrices beside a linear layer whose own weight stays (arXiv 2106.09685)."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from mm1.model.layers import linear, sharded_like

FACTORS = (".lora_A.weight", ".lora_B.weight")
"""How the names of a layer's two matrices end. PEFT's are the same."""


class LoRALinear(nn.Linear):
    """`layer(x) + scale * B(A(x))`, for a `layer` whose parameters keep their names. B starts at zero."""

    def __init__(self, layer: nn.Linear, *, rank: int, scale: float):
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.weight, self.bias, self.scale = layer.weight, layer.bias, scale
        self.initial_scale = layer.initial_scale
        with layer.weight.device:
            # A has the variance of PEFT's initial values, which are uniform in +-1 / sqrt(inputs)
            self.lora_A = linear(layer.in_features, rank, bias=False, scale=3**-0.5)
            self.lora_B = linear(rank, layer.out_features, bias=False, scale=0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias) + self.scale * self.lora_B(self.lora_A(x))


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is one of an adapter's two matrices."""
    return name.endswith(FACTORS)


def adapted(names: Iterable[str]) -> list[str]:
    """The layers that have an adapter among parameters of these names."""
    return [name.removesuffix(FACTORS[0]) for name in names if name.endswith(FACTORS[0])]


def product(a: torch.Tensor, b: torch.Tensor, *, scale: float) -> torch.Tensor:
    """What an adapter adds to the weight of its layer, in fp32."""
    return scale * (b.float() @ a.float())


@torch.no_grad()
def merge(state: dict[str, torch.Tensor], adapters: dict[str, torch.Tensor], *, scale: float) -> None:
    """Add adapters, by the names of their matrices, to the weights of their layers in `state`, in place."""
    for layer in adapted(adapters):
        weight = state[f"{layer}.weight"]
        a, b = (adapters[layer + factor].to(weight.device) for factor in FACTORS)
        weight.add_(sharded_like(product(a, b, scale=scale), weight).to(weight.dtype))

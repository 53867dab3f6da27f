"""Layers that all parts of the model share: norms, feed-forwards, a ViT's attention, positions, initial weights.

One letter beside the project's legend: W is the width of a head.
"""

import hashlib
import math
from collections.abc import Callable, Collection
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from mm1.model.rotary import rotate
from mm1.tiling import Grid

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),  # OpenAI's CLIP, and DFN's
}


DRAWN_AT_ONCE = {"cuda": 1 << 17}
"""Random numbers of one call, by device; all of a tensor where there is none."""


class RMSNorm(nn.Module):
    """The input divided by its root mean square over the last axis, in fp32, times a weight."""

    def __init__(self, width: int, epsilon: float):
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.epsilon)


class OffsetRMSNorm(RMSNorm):
    """The same times 1 + weight (Gemma), whose weight starts at zero."""

    def __init__(self, width: int, epsilon: float):
        super().__init__(width, epsilon)
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x.float(), self.weight.shape, 1 + self.weight.float(), self.epsilon).to(x.dtype)


NORMS: dict[str, Callable[[int, float], nn.Module]] = {"layer": nn.LayerNorm, "rms": RMSNorm}


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))`, the width of its input (Shazeer, arXiv 2002.05202), or with another activation."""

    def __init__(self, width: int, mlp_width: int, *, bias: bool = False, scale: float = 1.0, activation: str = "silu"):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.gate = linear(width, mlp_width, bias=bias)
        self.up = linear(width, mlp_width, bias=bias)
        self.down = linear(mlp_width, width, bias=bias, scale=scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.activation(self.gate(x)) * self.up(x))


class FeedForward(nn.Module):
    """`down(activation(up(x)))`, the width of its input; `activation` a key of `ACTIVATIONS`."""

    def __init__(self, width: int, mlp_width: int, *, activation: str, bias: bool = True, scale: float = 1.0):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.up = linear(width, mlp_width, bias=bias)
        self.down = linear(mlp_width, width, bias=bias, scale=scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.activation(self.up(x)))


class Attention(nn.Module):
    """Attention of the positions of `x` over those of `context`, in the width of `x`.

    A ViT's self-attention when both are the same, attention pooling when `x` are learned queries. A `mask` is boolean
    and true where a position sees another; without one each sees all. `angles` rotate queries and keys by position.
    """

    def __init__(
        self,
        width: int,
        context_width: int,
        *,
        heads: int,
        bias: bool = True,
        no_bias_in: Collection[str] = (),
        scale: float = 1.0,
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"an attention of width {width} can't be split into {heads} heads; change one of them")
        self.heads = heads
        self.query = linear(width, width, bias=bias and "query" not in no_bias_in)
        self.key = linear(context_width, width, bias=bias and "key" not in no_bias_in)
        self.value = linear(context_width, width, bias=bias and "value" not in no_bias_in)
        self.out = linear(width, width, bias=bias, scale=scale)

    def forward(
        self,
        x: torch.Tensor,
        context: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        angles: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.query(x), self.key(context), self.value(context))
        )
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return self.out(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))


class LayerScale(nn.Module):
    """The input times a learned factor for each channel (Touvron et al., arXiv 2103.17239)."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def linear(inputs: int, outputs: int, *, bias: bool, scale: float = 1.0) -> nn.Linear:
    """A linear layer whose initial weights `initialise` multiplies by `scale`."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    layer.initial_scale = scale  # type: ignore[assignment]
    return layer


def residual_scale(layers: int) -> float:
    """The factor on the initial weights of every residual branch's last matrix: 1 / sqrt(branches).

    A layer has two branches. Their sum then has the variance of one (GPT-2, section 2.3).
    """
    return (2 * layers) ** -0.5


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Fill every parameter from `seed` and its own name, so that order and sharding don't matter.

    Matrices are normal with variance 1 / inputs, embeddings and learned vectors normal with a standard deviation of
    0.02 or as their module's `initial_stds` says, norms one, biases zero. Each rank draws the whole tensor where the
    parameter is, so a GPU, which draws hundreds of times as fast, has other numbers than a CPU.
    """
    for prefix, module in model.named_modules():
        for leaf, parameter in module.named_parameters(prefix=prefix, recurse=False):
            mean, std = _initial(module, leaf.rpartition(".")[2])
            digest = hashlib.sha256(f"{seed} {leaf}".encode()).digest()
            generator = torch.Generator(parameter.device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            value = torch.full(parameter.shape, mean, device=parameter.device)
            if std:
                # how a GPU divides more numbers among its generator's streams depends on how many cores it has
                for part in value.flatten().split(DRAWN_AT_ONCE.get(value.device.type, value.numel())):
                    part.normal_(mean, std, generator=generator)
            parameter.copy_(sharded_like(value, parameter))


def _initial(module: nn.Module, leaf: str) -> tuple[float, float]:
    if isinstance(module, nn.Linear | nn.Conv2d):
        if leaf == "bias":
            return 0.0, 0.0
        return 0.0, getattr(module, "initial_scale", 1.0) * math.prod(module.weight.shape[1:]) ** -0.5
    scale = getattr(module, "initial_scale", None)
    if scale is not None:  # several matrices in one tensor, inputs last
        return 0.0, scale * module.get_parameter(leaf).shape[-1] ** -0.5
    if isinstance(module, OffsetRMSNorm):
        return 0.0, 0.0
    if isinstance(module, RMSNorm | nn.LayerNorm | LayerScale):
        return float(leaf == "weight"), 0.0
    return 0.0, getattr(module, "initial_stds", {}).get(leaf, 0.02)


def sharded_like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """`value` on the device of `parameter` and sharded over ranks as it is; every rank must give the same `value`."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor):
        return value.to(parameter.device)
    # every rank has the same values, so none needs to be sent
    return distribute_tensor(
        value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )


def resize_positions(position_PE: torch.Tensor, before: Grid, *, to: Grid, antialias: bool = False) -> torch.Tensor:
    """Position embeddings of the patches of `before`, interpolated bicubically to those of `to`.

    A class token's embedding, which comes first, stays as it is. `antialias` widens the kernel where the new grid is
    coarser, and takes a softer cubic everywhere (-0.5 for -0.75).
    """
    if before == to:
        return position_PE
    extra = len(position_PE) - before.cells
    position_1EYX = position_PE[extra:].float().T.unflatten(1, before)[None]
    resized_1EYX = F.interpolate(position_1EYX, size=to, mode="bicubic", antialias=antialias)
    return torch.cat((position_PE[:extra], resized_1EYX[0].flatten(1).T.to(position_PE.dtype)))

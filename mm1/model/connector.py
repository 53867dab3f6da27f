"""Connectors: P patch features of an image become S image tokens of the decoder's width (MM1, section 3.2).

The letter C stands for the inner width of a connector.
"""

import torch
import torch.nn.functional as F
from torch import nn

from mm1.config.model import ConnectorConfig, VisionConfig
from mm1.model.layers import Attention, FeedForward, linear, residual_scale, resize_grid


class Average(nn.Module):
    """Patch features averaged over a coarser grid, then one linear layer."""

    def __init__(self, config: ConnectorConfig, *, vision: VisionConfig, width: int):
        super().__init__()
        self.side = round(config.tokens**0.5)
        self.out = linear(vision.width, width, bias=True)

    def forward(self, features_NPE: torch.Tensor) -> torch.Tensor:
        return self.out(average(_grid(features_NPE), self.side).flatten(1, 2))


class Linear(nn.Module):
    """One linear layer on features sampled at the tokens' centres, LLaVA's where tokens are the patches.

    Liu et al., arXiv 2304.08485. Averaging before a linear layer would be `Average`.
    """

    def __init__(self, config: ConnectorConfig, *, vision: VisionConfig, width: int):
        super().__init__()
        self.side = round(config.tokens**0.5)
        self.out = linear(vision.width, width, bias=True)

    def forward(self, features_NPE: torch.Tensor) -> torch.Tensor:
        return self.out(sample(_grid(features_NPE), self.side).flatten(1, 2))


class MLP(nn.Module):
    """Two linear layers with a GELU between them, LLaVA-1.5's (Liu et al., arXiv 2310.03744).

    Where tokens are fewer than patches, on averages of these (DeCo; Yao et al., arXiv 2405.20985).
    """

    def __init__(self, config: ConnectorConfig, *, vision: VisionConfig, width: int):
        super().__init__()
        self.side = round(config.tokens**0.5)
        self.up = linear(vision.width, width, bias=True)
        self.out = linear(width, width, bias=True)

    def forward(self, features_NPE: torch.Tensor) -> torch.Tensor:
        return self.out(F.gelu(self.up(average(_grid(features_NPE), self.side).flatten(1, 2))))


class PixelShuffle(nn.Module):
    """Square blocks of patches, their channels side by side, through one linear layer.

    Idefics3's (Laurençon et al., arXiv 2408.12637). Where blocks don't fill the grid it is first sampled finer.
    """

    def __init__(self, config: ConnectorConfig, *, vision: VisionConfig, width: int):
        super().__init__()
        self.side = round(config.tokens**0.5)
        self.block = -(-vision.grid // self.side)  # patches along one side of a block
        self.out = linear(self.block**2 * vision.width, width, bias=False)

    def forward(self, features_NPE: torch.Tensor) -> torch.Tensor:
        x_NYXC = sample(_grid(features_NPE), self.side * self.block)
        blocks = x_NYXC.unflatten(2, (self.side, self.block)).unflatten(1, (self.side, self.block))
        return self.out(blocks.transpose(2, 3).flatten(3).flatten(1, 2))


class PoolingBlock(nn.Module):
    """A pre-norm layer in which queries [N, S, C] attend to patch features [N, P, E]."""

    def __init__(self, config: ConnectorConfig, *, features: int):
        super().__init__()
        scale = residual_scale(config.depth)
        self.query_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.feature_norm = nn.LayerNorm(features, eps=1e-6)
        self.attention = Attention(config.width, features, heads=config.heads, scale=scale)
        self.feed_forward_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.feed_forward = FeedForward(config.width, 4 * config.width, activation="gelu", scale=scale)

    def forward(self, x_NSC: torch.Tensor, features_NPE: torch.Tensor) -> torch.Tensor:
        x_NSC = x_NSC + self.attention(self.query_norm(x_NSC), self.feature_norm(features_NPE))
        return x_NSC + self.feed_forward(self.feed_forward_norm(x_NSC))


class AttentionPooling(nn.Module):
    """Learned queries that attend to the patch features, then one linear layer."""

    def __init__(self, config: ConnectorConfig, *, vision: VisionConfig, width: int):
        super().__init__()
        self.query_SC = nn.Parameter(torch.zeros(config.tokens, config.width))
        self.blocks = nn.ModuleList(PoolingBlock(config, features=vision.width) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.out = linear(config.width, width, bias=True)

    def forward(self, features_NPE: torch.Tensor) -> torch.Tensor:
        x_NSC = self.query_SC.expand(len(features_NPE), -1, -1)
        for block in self.blocks:
            x_NSC = block(x_NSC, features_NPE)
        return self.out(self.norm(x_NSC))


class CAbstractor(nn.Module):
    """Convolutions around an adaptive average pooling keep the picture's layout; a two-layer readout follows.

    Honeybee's C-Abstractor (Cha et al., arXiv 2312.06742; settings of github.com/khanrc/honeybee).
    """

    def __init__(self, config: ConnectorConfig, *, vision: VisionConfig, width: int):
        super().__init__()
        self.side = round(config.tokens**0.5)
        self.position_PE = nn.Parameter(torch.zeros(vision.grid**2, vision.width))
        inputs = [vision.width, *[config.width] * config.depth]
        self.before = nn.Sequential(*(Bottleneck(inputs[i], config.width) for i in range(config.depth)))
        self.after = nn.Sequential(*(Bottleneck(config.width, config.width) for _ in range(config.depth)))
        self.up = linear(inputs[config.depth], width, bias=True)
        self.out = linear(width, width, bias=True)

    def forward(self, features_NPE: torch.Tensor) -> torch.Tensor:
        grid = round(features_NPE.shape[1] ** 0.5)
        x_NYXC = self.before(_grid(features_NPE + resize_grid(self.position_PE, grid)))
        x_NYXC = self.after(average(x_NYXC, self.side))
        return self.out(F.silu(self.up(x_NYXC.flatten(1, 2))))


class Bottleneck(nn.Module):
    """A RegNet block with squeeze-and-excitation, [N, Y, X, channels] in and out (channels last).

    The 3x3 convolution is depthwise and nothing is narrowed: group size 1, bottleneck ratio 1, as timm's
    `RegStage` has it by default. The 1x1 convolutions are linear layers and LayerNorm2d is LayerNorm,
    since channels come last.
    """

    def __init__(self, inputs: int, channels: int):
        super().__init__()
        self.inner = linear(inputs, channels, bias=False)
        self.inner_norm = nn.LayerNorm(channels, eps=1e-6)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.depthwise_norm = nn.LayerNorm(channels, eps=1e-6)
        self.squeeze = linear(channels, round(inputs * 0.25), bias=True)
        self.excite = linear(round(inputs * 0.25), channels, bias=True)
        self.out = linear(channels, channels, bias=False)
        self.out_norm = nn.LayerNorm(channels, eps=1e-6)
        self.shortcut = None if inputs == channels else linear(inputs, channels, bias=False)
        self.shortcut_norm = None if inputs == channels else nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x_NYXC: torch.Tensor) -> torch.Tensor:
        y_NYXC = F.silu(self.inner_norm(self.inner(x_NYXC)))
        y_NYXC = self.depthwise(y_NYXC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y_NYXC = F.silu(self.depthwise_norm(y_NYXC))
        squeezed_N11C = F.silu(self.squeeze(y_NYXC.mean((1, 2), keepdim=True)))
        y_NYXC = y_NYXC * self.excite(squeezed_N11C).sigmoid()
        y_NYXC = self.out_norm(self.out(y_NYXC))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x_NYXC = self.shortcut_norm(self.shortcut(x_NYXC))
        return F.silu(x_NYXC + y_NYXC)


KINDS = {
    "c_abstractor": CAbstractor,
    "average": Average,
    "attention": AttentionPooling,
    "linear": Linear,
    "mlp": MLP,
    "pixel_shuffle": PixelShuffle,
}


def average(x_NYXC: torch.Tensor, side: int) -> torch.Tensor:
    """Square `x_NYXC` averaged over a `side` x `side` grid of cells that cover it, as adaptive average pooling does.

    As matrix products: deterministic on a GPU too, where `adaptive_avg_pool2d`'s backward isn't.
    """
    cells = _cells(x_NYXC.shape[1], side, like=x_NYXC)
    area = cells.sum(1)[:, None, None] * cells.sum(1)[:, None]
    return torch.einsum("sy,nyxc,tx->nstc", cells, x_NYXC, cells) / area


def sample(x_NYXC: torch.Tensor, side: int) -> torch.Tensor:
    """Square `x_NYXC` sampled at the centres of a `side` x `side` grid of cells, between pixels bilinearly.

    As matrix products, for the reason `average` has.
    """
    pixels = x_NYXC.shape[1]
    if pixels == side:
        return x_NYXC
    one_in_each = torch.eye(pixels, device=x_NYXC.device)[None]
    weights = F.interpolate(one_in_each, side, mode="linear")[0].to(x_NYXC.dtype)  # [pixels, side]
    return torch.einsum("ys,nyxc,xt->nstc", weights, x_NYXC, weights)


def _cells(pixels: int, cells: int, *, like: torch.Tensor) -> torch.Tensor:
    """1 where a cell covers a pixel, [cells, pixels]."""
    pixel = torch.arange(pixels, device=like.device)
    cell = torch.arange(cells, device=like.device)[:, None]
    covered = (pixel >= cell * pixels // cells) & (pixel < -((-(cell + 1) * pixels) // cells))
    return covered.to(like.dtype)


def _grid(features_NPE: torch.Tensor) -> torch.Tensor:
    side = round(features_NPE.shape[1] ** 0.5)
    return features_NPE.unflatten(1, (side, side))

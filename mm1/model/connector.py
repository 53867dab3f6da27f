"""Connectors: P patch features of an image become S image tokens of the decoder's width (MM1, section 3.2).

Each takes features row by row and the grid of their patches; `tokens` is the grid of the image tokens. The letter C
stands for the inner width of a connector.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from mm1.config.model import ConnectorConfig, VisionConfig
from mm1.model.depthwise import depthwise
from mm1.model.layers import Attention, FeedForward, linear, residual_scale, resize_positions
from mm1.tiling import Grid

ROW_END = "connector.row_end_D"
"""The name in the whole model of the feature that ends rows of tiles."""


class Connector(nn.Module):
    """What all connectors share: the features that end rows, if the model's tiling has such (see `tiling.py`)."""

    def __init__(self):
        super().__init__()
        self.register_parameter("row_end_D", None)

    def learn_row_ends(self, width: int) -> None:
        """Give every tile one more feature after those of its tokens: a learned one, which ends a row of tiles.

        It starts with the scale that LLaVA-NeXT's code draws `image_newline` with: 1 / sqrt(width).
        """
        self.row_end_D = nn.Parameter(torch.zeros(width))
        self.initial_stds = {"row_end_D": width**-0.5}

    def forward(self, features_NPE: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Features [N, S, D] of tiles from those of their patches; [N, S + 1, D] with an end of rows."""
        x_NSD = self.project(features_NPE, grid)
        if self.row_end_D is None:
            return x_NSD
        return torch.cat((x_NSD, self.row_end_D.expand(len(x_NSD), 1, -1)), 1)

    def project(self, features_NPE: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Image tokens [N, S, D]."""
        raise NotImplementedError


class Average(Connector):
    """Patch features averaged over the cells of the tokens' grid, then one linear layer."""

    def __init__(self, config: ConnectorConfig, *, vision: VisionConfig, width: int):
        super().__init__()
        self.tokens = config.grid
        self.out = linear(vision.width, width, bias=True)

    def project(self, features_NPE: torch.Tensor, grid: Grid) -> torch.Tensor:
        return self.out(average(features_NPE.unflatten(1, grid), self.tokens).flatten(1, 2))


class Linear(Connector):
    """One linear layer on features sampled at the centres of the tokens' cells.

    With a token per patch it is LLaVA's (Liu et al., arXiv 2304.08485).
    """

    def __init__(self, config: ConnectorConfig, *, vision: VisionConfig, width: int):
        super().__init__()
        self.tokens = config.grid
        self.out = linear(vision.width, width, bias=True)

    def project(self, features_NPE: torch.Tensor, grid: Grid) -> torch.Tensor:
        return self.out(sample(features_NPE.unflatten(1, grid), self.tokens).flatten(1, 2))


class MLP(Connector):
    """Two linear layers with a GELU between them, LLaVA-1.5's (Liu et al., arXiv 2310.03744).

    With fewer tokens than patches they take averages of patches (DeCo; Yao et al., arXiv 2405.20985).
    """

    def __init__(self, config: ConnectorConfig, *, vision: VisionConfig, width: int):
        super().__init__()
        self.tokens = config.grid
        self.up = linear(vision.width, width, bias=True)
        self.out = linear(width, width, bias=True)

    def project(self, features_NPE: torch.Tensor, grid: Grid) -> torch.Tensor:
        return self.out(F.gelu(self.up(average(features_NPE.unflatten(1, grid), self.tokens).flatten(1, 2))))


class PixelShuffle(Connector):
    """Blocks of patches, their channels concatenated, through one linear layer.

    Idefics3's (Laurençon et al., arXiv 2408.12637). A grid that blocks don't divide is first sampled at a finer one.
    """

    def __init__(self, config: ConnectorConfig, *, vision: VisionConfig, width: int):
        super().__init__()
        self.tokens = config.grid
        # patches of a block
        self.block = Grid(*(-(-patches // tokens) for patches, tokens in zip(vision.grid, self.tokens, strict=True)))
        self.out = linear(self.block.cells * vision.width, width, bias=False)

    def project(self, features_NPE: torch.Tensor, grid: Grid) -> torch.Tensor:
        return self.out(self.shuffled(features_NPE, grid))

    def shuffled(self, features_NPE: torch.Tensor, grid: Grid) -> torch.Tensor:
        """The channels of each block, [N, S, block * E]."""
        tokens, block = self.tokens, self.block
        x_NYXC = sample(features_NPE.unflatten(1, grid), Grid(tokens.rows * block.rows, tokens.columns * block.columns))
        blocks = x_NYXC.unflatten(2, (tokens.columns, block.columns)).unflatten(1, (tokens.rows, block.rows))
        return blocks.transpose(2, 3).flatten(3).flatten(1, 2)


class PixelShuffleMLP(PixelShuffle):
    """The same blocks, normed, through two linear layers with a GELU between them: InternVL's (arXiv 2404.16821)."""

    def __init__(self, config: ConnectorConfig, *, vision: VisionConfig, width: int):
        super().__init__(config, vision=vision, width=width)
        inputs = self.block.cells * vision.width
        self.norm = nn.LayerNorm(inputs)
        self.up = linear(inputs, width, bias=True)
        self.out = linear(width, width, bias=True)

    def project(self, features_NPE: torch.Tensor, grid: Grid) -> torch.Tensor:
        return self.out(F.gelu(self.up(self.norm(self.shuffled(features_NPE, grid)))))


class PoolingBlock(nn.Module):
    """A pre-norm layer: queries [N, S, C] attend to patch features [N, P, E]."""

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


class AttentionPooling(Connector):
    """Learned queries attend to the patch features, then comes one linear layer."""

    def __init__(self, config: ConnectorConfig, *, vision: VisionConfig, width: int):
        super().__init__()
        self.query_SC = nn.Parameter(torch.zeros(config.tokens, config.width))
        self.blocks = nn.ModuleList(PoolingBlock(config, features=vision.width) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.out = linear(config.width, width, bias=True)

    def project(self, features_NPE: torch.Tensor, grid: Grid) -> torch.Tensor:
        x_NSC = self.query_SC.expand(len(features_NPE), -1, -1)
        for block in self.blocks:
            x_NSC = block(x_NSC, features_NPE)
        return self.out(self.norm(x_NSC))


class CAbstractor(Connector):
    """Convolutions before and after an adaptive average pooling, which keep the layout; then two linear layers.

    Honeybee's C-Abstractor (Cha et al., arXiv 2312.06742; settings of github.com/khanrc/honeybee).
    """

    def __init__(self, config: ConnectorConfig, *, vision: VisionConfig, width: int):
        super().__init__()
        self.tokens = config.grid
        self.grid = vision.grid  # of the patches that the position embeddings belong to
        self.position_PE = nn.Parameter(torch.zeros(self.grid.cells, vision.width))
        inputs = [vision.width, *[config.width] * config.depth]
        self.before = nn.Sequential(*(Bottleneck(inputs[i], config.width) for i in range(config.depth)))
        self.after = nn.Sequential(*(Bottleneck(config.width, config.width) for _ in range(config.depth)))
        self.up = linear(inputs[config.depth], width, bias=True)
        self.out = linear(width, width, bias=True)

    def project(self, features_NPE: torch.Tensor, grid: Grid) -> torch.Tensor:
        x_NPE = features_NPE + resize_positions(self.position_PE, self.grid, to=grid)
        x_NYXC = self.after(average(self.before(x_NPE.unflatten(1, grid)), self.tokens))
        return self.out(F.silu(self.up(x_NYXC.flatten(1, 2))))


class Bottleneck(nn.Module):
    """A RegNet block with squeeze-and-excitation on [N, Y, X, channels].

    As by default in timm's `RegStage`, the 3x3 convolution is depthwise (group size 1) and the width stays the same
    inside (bottleneck ratio 1). Since channels come last, 1x1 convolutions are linear layers and LayerNorm2d is
    LayerNorm.
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
        y_NYXC = depthwise(y_NYXC, self.depthwise.weight)
        y_NYXC = F.silu(self.depthwise_norm(y_NYXC))
        squeezed_N11C = F.silu(self.squeeze(y_NYXC.mean((1, 2), keepdim=True)))
        y_NYXC = y_NYXC * self.excite(squeezed_N11C).sigmoid()
        y_NYXC = self.out_norm(self.out(y_NYXC))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x_NYXC = self.shortcut_norm(self.shortcut(x_NYXC))
        return F.silu(x_NYXC + y_NYXC)


KINDS: dict[str, Callable[..., Connector]] = {
    "c_abstractor": CAbstractor,
    "average": Average,
    "attention": AttentionPooling,
    "linear": Linear,
    "mlp": MLP,
    "pixel_shuffle": PixelShuffle,
    "pixel_shuffle_mlp": PixelShuffleMLP,
}


def average(x_NYXC: torch.Tensor, grid: Grid) -> torch.Tensor:
    """`x_NYXC` averaged over the cells of a `grid` that covers it, as adaptive average pooling does.

    As matrix products: deterministic on a GPU too, where the backward of `adaptive_avg_pool2d` isn't.
    """
    rows = _covered(x_NYXC.shape[1], grid.rows, like=x_NYXC)
    columns = _covered(x_NYXC.shape[2], grid.columns, like=x_NYXC)
    area = rows.sum(1)[:, None, None] * columns.sum(1)[:, None]
    return torch.einsum("sy,nyxc,tx->nstc", rows, x_NYXC, columns) / area


def sample(x_NYXC: torch.Tensor, grid: Grid) -> torch.Tensor:
    """`x_NYXC` sampled at the centres of the cells of a `grid` that covers it, between pixels bilinearly.

    As matrix products, for the same reason as in `average`.
    """
    if x_NYXC.shape[1:3] == grid:
        return x_NYXC
    rows = _interpolation(x_NYXC.shape[1], grid.rows, like=x_NYXC)
    columns = _interpolation(x_NYXC.shape[2], grid.columns, like=x_NYXC)
    return torch.einsum("ys,nyxc,xt->nstc", rows, x_NYXC, columns)


def _interpolation(pixels: int, cells: int, *, like: torch.Tensor) -> torch.Tensor:
    """The weight of each pixel at the centre of each cell, [pixels, cells]."""
    one_in_each = torch.eye(pixels, device=like.device)[None]
    return F.interpolate(one_in_each, cells, mode="linear")[0].to(like.dtype)


def _covered(pixels: int, cells: int, *, like: torch.Tensor) -> torch.Tensor:
    """1 where a cell covers a pixel, [cells, pixels]."""
    pixel = torch.arange(pixels, device=like.device)
    cell = torch.arange(cells, device=like.device)[:, None]
    covered = (pixel >= cell * pixels // cells) & (pixel < -((-(cell + 1) * pixels) // cells))
    return covered.to(like.dtype)

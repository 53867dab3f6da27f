"""The image encoder: a ViT with the variants of the families that people use (`encoders.py`).

Two letters beside the project's legend: R are registers, Q all tokens of an image (class token, registers, patches).
"""

import torch
from torch import nn

from mm1.config.model import VisionConfig
from mm1.model.layers import NORMS, Attention, FeedForward, LayerScale, SwiGLU, linear, residual_scale, resize_positions
from mm1.model.rotary import patch_angles
from mm1.tiling import Grid

Angles = tuple[torch.Tensor, torch.Tensor]


class VisionBlock(nn.Module):
    """A pre-norm transformer layer, [N, Q, E] to [N, Q, E]."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        width, bias, scale = config.width, config.bias, residual_scale(config.layers)
        self.attention_norm = NORMS[config.norm](width, config.norm_epsilon)
        self.attention = Attention(
            width, width, heads=config.heads, bias=bias, no_bias_in=config.no_bias_in, scale=scale
        )
        self.attention_scale = LayerScale(width) if config.layer_scale else nn.Identity()
        self.feed_forward_norm = NORMS[config.norm](width, config.norm_epsilon)
        self.feed_forward = (
            SwiGLU(width, config.mlp_width, bias=bias, scale=scale)
            if config.gated
            else FeedForward(width, config.mlp_width, activation=config.activation, bias=bias, scale=scale)
        )
        self.feed_forward_scale = LayerScale(width) if config.layer_scale else nn.Identity()

    def forward(
        self, x_NQE: torch.Tensor, mask: torch.Tensor | None = None, angles: Angles | None = None
    ) -> torch.Tensor:
        y_NQE = self.attention_norm(x_NQE)
        x_NQE = x_NQE + self.attention_scale(self.attention(y_NQE, y_NQE, mask, angles=angles))
        return x_NQE + self.feed_forward_scale(self.feed_forward(self.feed_forward_norm(x_NQE)))


class Vision(nn.Module):
    """A ViT from uint8 pixels to patch features (Dosovitskiy et al., arXiv 2010.11929).

    Images may have another size than `config.image_size`: learned position embeddings are then interpolated. What fills
    no patch, on the right and below, is not seen.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        width, norm = config.width, NORMS[config.norm]
        self.patch = linear(3 * config.patch_size**2, width, bias=config.patch_bias)
        self.patch_norm = norm(width, config.norm_epsilon) if config.patch_norm else nn.Identity()
        self.class_E = nn.Parameter(torch.zeros(width)) if config.class_token else None
        self.register_RE = nn.Parameter(torch.zeros(config.registers, width)) if config.registers else None
        positions = config.grid.cells + config.class_token
        learned = not config.fixed_positions and config.rope_base is None
        self.position_PE = nn.Parameter(torch.zeros(positions, width)) if learned else None
        self.input_norm = norm(width, config.norm_epsilon) if config.input_norm else nn.Identity()
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.layers))
        self.norm = norm(width, config.norm_epsilon)

    def forward(self, images_NCYX: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Features [N, P, E] of the patches, row by row, from the layer `config.feature_layer`.

        A `mask`, such as `prefix_mask` makes for AIM's pre-training, is true where a token sees another.
        """
        used = self.config.layers + 1 + self.config.feature_layer
        x_NQE, angles = self.embed(images_NCYX), self.angles(images_NCYX)
        for block in self.blocks[:used]:
            x_NQE = block(x_NQE, mask, angles)
        if self.norms_features:
            x_NQE = self.norm(x_NQE)
        return x_NQE[:, self._before :]

    @property
    def norms_features(self) -> bool:
        """Whether `forward` ends with the norm."""
        return self.config.feature_layer == -1 and self.config.feature_norm

    def summary(self, images_NCYX: torch.Tensor) -> torch.Tensor:
        """One feature per image, [N, E]: the class token, or the mean of the patches; after the last norm."""
        x_NQE, angles = self.embed(images_NCYX), self.angles(images_NCYX)
        for block in self.blocks:
            x_NQE = block(x_NQE, None, angles)
        if self.config.class_token:
            return self.norm(x_NQE[:, 0])
        return self.norm(x_NQE[:, self._before :]).mean(1)

    def idle(self) -> list[nn.Parameter]:
        """The parameters after `config.feature_layer`, which `forward` never uses."""
        if self.norms_features:
            return []
        used = self.config.layers + 1 + self.config.feature_layer
        return [*self.blocks[used:].parameters(), *self.norm.parameters()]

    @property
    def grid(self) -> Grid:
        """The patches that the position embeddings belong to."""
        return self.config.grid

    def grid_of(self, images_NCYX: torch.Tensor) -> Grid:
        """The patches of images of this size."""
        rows, columns = (pixels // self.config.patch_size for pixels in images_NCYX.shape[2:])
        return Grid(rows, columns)

    def patches(self, images_NCYX: torch.Tensor) -> torch.Tensor:
        """Normalised pixels [N, P, channels * rows * columns of a patch] in fp32; what fills no patch is cut off."""
        size, grid = self.config.patch_size, self.grid_of(images_NCYX)
        images_NCYX = images_NCYX[:, :, : grid.rows * size, : grid.columns * size]
        patches = normalise(images_NCYX, self.config).unflatten(3, (-1, size)).unflatten(2, (-1, size))
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    @property
    def _before(self) -> int:
        """The number of tokens before the patches."""
        return self.config.class_token + self.config.registers

    def angles(self, images_NCYX: torch.Tensor) -> Angles | None:
        """Rotary angles of all tokens of images of this size; None where positions are added to patches."""
        config = self.config
        if config.rope_base is None:
            return None
        width, grid = config.width // config.heads, self.grid_of(images_NCYX)
        return patch_angles(grid, width=width, base=config.rope_base, before=self._before, like=images_NCYX)

    def embed(self, images_NCYX: torch.Tensor) -> torch.Tensor:
        """The input of the first block, [N, Q, E]: patches with their positions, after class token and registers."""
        x_NPE = self.patch_norm(self.patch(self.patches(images_NCYX).to(self.patch.weight.dtype)))
        grid, images = self.grid_of(images_NCYX), len(x_NPE)
        if self.config.fixed_positions:
            x_NQE = x_NPE + fixed_positions(grid, like=x_NPE)
        elif self.position_PE is not None:
            position_PE = self.position_PE[int(self.config.class_token) :]
            antialias = self.config.antialias
            x_NQE = x_NPE + resize_positions(position_PE, self.grid, to=grid, antialias=antialias)
        else:
            x_NQE = x_NPE
        if self.register_RE is not None:
            x_NQE = torch.cat((self.register_RE.expand(images, -1, -1), x_NQE), 1)
        if self.class_E is not None:
            class_E = self.class_E if self.position_PE is None else self.class_E + self.position_PE[0]
            x_NQE = torch.cat((class_E.expand(images, 1, -1), x_NQE), 1)
        return self.input_norm(x_NQE)


def normalise(images_NCYX: torch.Tensor, config: VisionConfig) -> torch.Tensor:
    """uint8 pixels in [0, 1] in fp32, less the mean and divided by the standard deviation of each channel."""
    return torch.stack(
        [
            (channel_NYX.float() / 255 - mean) / std
            for channel_NYX, mean, std in zip(images_NCYX.unbind(1), config.mean, config.std, strict=True)
        ],
        1,
    )


def fixed_positions(grid: Grid, *, like: torch.Tensor) -> torch.Tensor:
    """Sines and cosines of every patch's column and row, [P, E], in the order of AIM's public code.

    Four quarters of channels: sine and cosine of the column, then of the row (github.com/apple/ml-aim).
    """
    quarter = like.shape[-1] // 4
    frequency = 10_000 ** -(torch.arange(quarter, device=like.device, dtype=torch.float32) / quarter)

    def wave(count: int) -> torch.Tensor:
        angle = torch.arange(count, device=like.device, dtype=torch.float32)[:, None] * frequency
        return torch.cat((angle.sin(), angle.cos()), -1)

    columns = wave(grid.columns).expand(grid.rows, -1, -1)
    rows = wave(grid.rows)[:, None].expand(-1, grid.columns, -1)
    return torch.cat((columns, rows), -1).flatten(0, 1).to(like.dtype)


def prefix_mask(prefix_N: torch.Tensor, rank_P: torch.Tensor) -> torch.Tensor:
    """Which patches see which, boolean [N, 1, P, P]: each itself, those before it, and its image's first `prefix_N`.

    `rank_P` is the order of the patches, from 0 (AIM; El-Nouby et al., arXiv 2401.08541, section 3.2).
    """
    causal_PP = rank_P[:, None] >= rank_P
    return (causal_PP | (rank_P < prefix_N[:, None, None]))[:, None]

"""The image encoder: a ViT over square images."""

import torch
from torch import nn

from mm1.config import VisionConfig
from mm1.model.layers import Attention, FeedForward, linear, residual_scale, resize_grid


class VisionBlock(nn.Module):
    """A pre-norm transformer layer without mask, [N, P, E] in and out."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        scale = residual_scale(config.layers)
        self.attention_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.attention = Attention(config.width, config.width, heads=config.heads, scale=scale)
        self.feed_forward_norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.feed_forward = FeedForward(config.width, config.mlp_width, activation=config.activation, scale=scale)

    def forward(self, x_NPE: torch.Tensor) -> torch.Tensor:
        y_NPE = self.attention_norm(x_NPE)
        x_NPE = x_NPE + self.attention(y_NPE, y_NPE)
        return x_NPE + self.feed_forward(self.feed_forward_norm(x_NPE))


class Vision(nn.Module):
    """A ViT from uint8 pixels to patch features (Dosovitskiy et al., arXiv 2010.11929).

    Images of another size than `config.image_size` are taken too (a multiple of `patch_size`); the
    learned position embeddings are then interpolated.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.patch = linear(3 * config.patch_size**2, width, bias=config.patch_bias)
        self.class_E = nn.Parameter(torch.zeros(width)) if config.class_token else None
        self.position_PE = nn.Parameter(torch.zeros(config.grid**2 + config.class_token, width))
        self.input_norm = nn.LayerNorm(width, eps=config.norm_epsilon) if config.input_norm else None
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width, eps=config.norm_epsilon)

    def forward(self, images_NCYX: torch.Tensor) -> torch.Tensor:
        """Features [N, P, E] of the patches, row by row, from the layer `config.feature_layer` names."""
        used = self.config.layers + 1 + self.config.feature_layer
        x_NPE = self._embed(images_NCYX)
        for block in self.blocks[:used]:
            x_NPE = block(x_NPE)
        if self.config.feature_layer == -1:
            x_NPE = self.norm(x_NPE)
        return x_NPE[:, 1:] if self.config.class_token else x_NPE

    def summary(self, images_NCYX: torch.Tensor) -> torch.Tensor:
        """One feature an image, [N, E]: the class token, or the mean of the patches; after the last norm."""
        x_NPE = self._embed(images_NCYX)
        for block in self.blocks:
            x_NPE = block(x_NPE)
        if self.config.class_token:
            return self.norm(x_NPE[:, 0])
        return self.norm(x_NPE).mean(1)

    def idle(self) -> list[nn.Parameter]:
        """The parameters behind `config.feature_layer`, which `forward` never touches."""
        if self.config.feature_layer == -1:
            return []
        used = self.config.layers + 1 + self.config.feature_layer
        return [*self.blocks[used:].parameters(), *self.norm.parameters()]

    def _embed(self, images_NCYX: torch.Tensor) -> torch.Tensor:
        x_NPE = self.patch(self._patches(images_NCYX).to(self.patch.weight.dtype))
        grid = images_NCYX.shape[-1] // self.config.patch_size
        if self.class_E is None:
            x_NPE = x_NPE + resize_grid(self.position_PE, grid)
        else:
            class_N1E = (self.class_E + self.position_PE[0]).expand(len(x_NPE), 1, -1)
            x_NPE = torch.cat((class_N1E, x_NPE + resize_grid(self.position_PE[1:], grid)), 1)
        return x_NPE if self.input_norm is None else self.input_norm(x_NPE)

    def _patches(self, images_NCYX: torch.Tensor) -> torch.Tensor:
        """Normalised pixels [N, P, channels * rows * columns of a patch] in fp32."""
        size = self.config.patch_size
        pixels_NCYX = torch.stack(
            [
                (channel_NYX.float() / 255 - mean) / deviation
                for channel_NYX, mean, deviation in zip(
                    images_NCYX.unbind(1), self.config.mean, self.config.deviation, strict=True
                )
            ],
            1,
        )
        patches = pixels_NCYX.unflatten(3, (-1, size)).unflatten(2, (-1, size))
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

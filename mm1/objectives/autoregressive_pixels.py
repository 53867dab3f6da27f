"""Autoregressive pre-training of the encoder: each patch predicts the next one.

This is AIM (El-Nouby et al., arXiv 2401.08541). One letter beside the project's legend: R are the patches in the order
in which they are predicted.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import nn

from mm1.config.base import ConfigError
from mm1.config.model import VisionConfig
from mm1.config.run import PixelsConfig, RunConfig
from mm1.document import Batch
from mm1.model.layers import NORMS, FeedForward, initialise, linear
from mm1.model.vision import Vision, fixed_positions, prefix_mask
from mm1.objectives.draws import uniform
from mm1.objectives.loss import Loss, ModelPart, Objective

PREFIX, ORDER = 4, 5
"""What is drawn, for the seed."""

EPSILON = 1e-6
"""Added to the variance of a patch's pixels (MAE's, which AIM follows)."""


class HeadLayer(nn.Module):
    """A residual feed-forward: a transformer's layer without attention, so every patch is by itself."""

    def __init__(self, width: int, vision: VisionConfig, *, layers: int):
        super().__init__()
        self.norm = NORMS[vision.norm](width, vision.norm_epsilon)
        self.feed_forward = FeedForward(
            width, 4 * width, activation=vision.activation, bias=vision.bias, scale=layers**-0.5
        )

    def forward(self, x_NPC: torch.Tensor) -> torch.Tensor:
        return x_NPC + self.feed_forward(self.norm(x_NPC))


class PixelHead(nn.Module):
    """From the encoder's features to the pixels of a patch (AIM, section 3.2 and appendix)."""

    def __init__(self, vision: VisionConfig, config: PixelsConfig):
        super().__init__()
        width, pixels = config.head_width, 3 * vision.patch_size**2
        if not config.head_layers:
            self.output = linear(vision.width, pixels, bias=True)
            return
        self.input = linear(vision.width, width, bias=True)
        self.layers = nn.ModuleList(
            HeadLayer(width, vision, layers=config.head_layers) for _ in range(config.head_layers)
        )
        self.norm = NORMS[vision.norm](width, vision.norm_epsilon)
        self.output = linear(width, pixels, bias=True)
        self._grid = vision.grid

    def forward(self, x_NPE: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "layers"):
            return self.output(x_NPE)
        x_NPC = self.input(x_NPE)
        x_NPC = x_NPC + fixed_positions(self._grid, like=x_NPC)
        for layer in self.layers:
            x_NPC = layer(x_NPC)
        return self.output(self.norm(x_NPC))


class PixelModel(nn.Module):
    """The encoder of `vision` and what predicts pixels from its features."""

    def __init__(self, vision: VisionConfig, config: PixelsConfig):
        super().__init__()
        self.vision = Vision(vision)
        self.head = PixelHead(vision, config)

    def initialise(self, seed: int) -> None:
        """Fill every parameter from `seed`."""
        initialise(self, seed)

    def forward(self, images_NCYX: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What each patch predicts, [N, P, pixels of a patch]; `mask` says which patches it sees."""
        return self.head(self.vision(images_NCYX, mask))


class AutoregressivePixels(Objective):
    """Mean squared error of the next patch's standardised pixels, outside of a prefix (AIM, section 3).

    The prefix of each image is drawn by (seed, what, number of the sequence, number of the image in it).
    """

    unit: ClassVar[str] = "patch"
    units: ClassVar[str] = "patches"
    learns: ClassVar[str] = "predicts the next patch of a picture"
    parts: ClassVar[frozenset[ModelPart]] = frozenset({"vision"})

    model: PixelModel

    def __init__(self, model: PixelModel, sources: list[str], run: RunConfig):
        self.model, self.sources, self._seed = model, sources, run.seed
        self._image_token, self._image_tokens = run.model.image_token, run.model.connector.tokens
        patches = run.model.vision.grid.cells
        self._order_R = np.arange(patches)
        if run.pixels is not None and run.pixels.order == "random":
            self._order_R = np.random.default_rng((run.seed, ORDER)).permutation(patches)

    @classmethod
    def check(cls, run: RunConfig) -> None:
        vision, name = run.model.vision, run.objective
        if run.pixels is None:
            raise ConfigError(f"objective {name} needs a head for pixels; set pixels.head_width")
        if vision.class_token or vision.registers or vision.feature_layer != -1:
            raise ConfigError(
                f"objective {name} predicts patches from the last layer of patches alone; set "
                "model.vision.class_token=false, registers=0 and feature_layer=-1"
            )
        for field, expected in (
            ("model.tiling.kind", "none"),
            ("model.decoder.sparse.experts", 0),
            ("parallel.tp", 1),
            ("z_loss_weight", 0),
            ("loss_weighting", "token"),
        ):
            value: object = run
            for part in field.split("."):
                value = getattr(value, part)
            if value != expected:
                raise ConfigError(f"objective {name} has an encoder alone; set {field}={expected} (is {value})")
        if isinstance(run.optim.learning_rate, str):
            raise ConfigError(
                f"the learning-rate law is of decoders, and objective {name} has none; set optim.learning_rate to a "
                "number"
            )

    @classmethod
    def build(cls, run: RunConfig, sources: list[str]) -> Self:
        cls.check(run)
        assert run.pixels is not None
        return cls(PixelModel(run.model.vision, run.pixels), sources, run)

    def weight(self, batch: Batch) -> int:
        images = self._images(batch)
        return int(((len(self._order_R) - images.prefix_N) * images.real_N).sum())

    def loss(self, batch: Batch) -> Loss:
        images, order_R = self._images(batch), torch.from_numpy(self._order_R).to(batch.tokens_BT.device)
        mask = prefix_mask(images.prefix_N, order_R.argsort())
        predicted_NPC = self.model(images.pixels_NCYX, mask).float()
        target_NPC = standardised(self.model.vision.patches(images.pixels_NCYX))
        errors_NR = (predicted_NPC[:, order_R[:-1]] - target_NPC[:, order_R[1:]]).square().mean(-1)
        rank_R = torch.arange(1, len(order_R), device=order_R.device)
        is_target_NR = (rank_R >= images.prefix_N[:, None]) & images.real_N[:, None]
        errors_N, targets_N = errors_NR.masked_fill(~is_target_NR, 0).sum(1), is_target_NR.sum(1)
        zeros = torch.zeros(max(1, len(self.sources)), device=errors_N.device)
        return Loss(
            total=errors_N.sum(),
            weight=targets_N.sum(),
            by_source=zeros.index_add(0, images.source_N, errors_N.detach()),
            weight_by_source=zeros.index_add(0, images.source_N, targets_N.to(zeros.dtype)),
        )

    def _images(self, batch: Batch) -> "_Images":
        """The images of a batch, at least one, with their prefixes; computed without waiting for the device."""
        pixels_NCYX, vision = batch.images_NCYX, self.model.vision.config
        if not len(pixels_NCYX):
            pixels_NCYX = pixels_NCYX.new_zeros(1, 3, vision.image_size, vision.image_size)
        number_N = torch.arange(len(pixels_NCYX), device=pixels_NCYX.device)
        images_B = (batch.tokens_BT == self._image_token).sum(1) // self._image_tokens
        ends_B = images_B.cumsum(0)
        row_N = torch.searchsorted(ends_B, number_N, right=True).clamp(max=len(ends_B) - 1)
        numbers = batch.sequence_B[row_N], number_N - (ends_B - images_B)[row_N]
        last = vision.grid.cells - 1
        prefix_N = uniform(1, last, seed=self._seed, what=PREFIX, numbers=numbers)
        return _Images(pixels_NCYX, number_N < batch.images, batch.source_B[row_N], prefix_N)


@dataclass(frozen=True, slots=True)
class _Images:
    pixels_NCYX: torch.Tensor
    real_N: torch.Tensor
    source_N: torch.Tensor
    prefix_N: torch.Tensor


def standardised(patches_NPC: torch.Tensor) -> torch.Tensor:
    """Pixels of each patch less their mean, over the root of their unbiased variance and `EPSILON`."""
    variance, mean = torch.var_mean(patches_NPC, dim=-1, keepdim=True)
    return (patches_NPC - mean) / (variance + EPSILON).sqrt()

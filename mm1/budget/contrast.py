"""What the contrast of a step takes beside the towers: features of all pairs, similarities, their exchange."""

from dataclasses import dataclass
from typing import Self

import torch

from mm1.budget.hardware import Hardware
from mm1.budget.parallel_layout import ParallelLayout
from mm1.config.run import RunConfig
from mm1.objectives.contrast import AT_ONCE
from mm1.objectives.contrastive import Contrastive
from mm1.objectives.index import objective_of

FP32 = 4
MATRICES = 6
"""Matrices of similarities that are alive at once (counted in `objectives/contrast.py`): logits, both logarithms less
their sums, their exponentials, the gradient."""

FP32_SHARE = 67 / 989
"""Peak of an H100 in fp32, which similarities are computed in, over that in bf16 (NVIDIA's datasheet)."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """The contrast of `pairs` pairs with features of `width` numbers. `travels`: texts go round the ranks (SigLIP)."""

    pairs: int
    width: int
    travels: bool

    @classmethod
    def of(cls, run: RunConfig) -> Self | None:
        """That of a run whose sequences are full; None if its objective is no contrast."""
        kind = objective_of(run)
        if not issubclass(kind, Contrastive):
            return None
        return cls(run.batch_size * run.data.max_images, run.model.decoder.width, kind.kind == "sigmoid")

    @property
    def flops(self) -> float:
        """Of the similarities of a step, once."""
        return 2.0 * self.pairs**2 * self.width

    def bytes(self, layout: ParallelLayout) -> float:
        """Bytes of a rank: features of images and texts with their gradients, those of other ranks, similarities."""
        own = self.pairs / layout.data_ranks
        others = 2 * own if self.travels else self.pairs  # another rank's texts and gradients; all ranks' features
        compared = min(AT_ONCE["cuda"], own * (own if self.travels else self.pairs))
        return FP32 * (2 * (2 * own + others) * self.width + MATRICES * compared)

    def seconds(self, layout: ParallelLayout, hardware: Hardware, *, precision: torch.dtype) -> float:
        """Seconds of a rank's matrix products in fp32: SigLIP's three, CLIP's six. Towers compute in `precision`."""
        peak = hardware.peak_flops * (1 if precision == torch.float32 else FP32_SHARE)
        return (3 if self.travels else 6) * self.flops / layout.data_ranks / peak

    def gather_seconds(self, layout: ParallelLayout, hardware: Hardware) -> float:
        """Seconds in which a rank receives what the others have: all features, or texts with their gradients."""
        received = FP32 * 2 * self.pairs * self.width * (1 - 1 / layout.data_ranks)
        return received / hardware.ring_bandwidth(layout.data_ranks, stride=layout.tp)

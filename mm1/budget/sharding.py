"""How many numbers of each weight a rank stores, gathers and receives under FSDP, tensor and expert parallelism."""

import re
from math import prod
from typing import NamedTuple

from mm1.budget.parallel_layout import ParallelLayout

_BLOCK = r"decoder\.blocks\.\d+\."
_OUTPUTS = re.compile(_BLOCK + r"(attention\.(query|key|value)|feed_forward\.(gate|up))\.(lora_B\.)?(weight|bias)")
_INPUTS = re.compile(_BLOCK + r"(attention\.out|feed_forward\.down)\.(lora_A\.)?weight")
"""What tensor parallelism shards along its first axis, the outputs of a layer, and along its second, the inputs.

Of an adapter's two matrices it shards the one on the side of the layer that it shards (`train/adapters.py`).
"""


class Weight(NamedTuple):
    """One tensor of the model."""

    name: str
    shape: tuple[int, ...]
    trained: bool

    @property
    def unit(self) -> str:
        """The FSDP unit it is gathered with: a block, another part of the model, or "" for the root."""
        prefix = re.match(r"(vision|decoder)\.blocks\.\d+|vision|connector|head", self.name)
        return prefix[0] if prefix else ""

    def gathered(self, layout: ParallelLayout) -> int:
        """How many of its numbers a rank computes with, once FSDP has gathered them."""
        return prod(self._shape(layout))

    def local(self, layout: ParallelLayout) -> int:
        """How many of its numbers a rank stores: those of the first rank, which has the longest shard."""
        first, *rest = self._shape(layout)
        return -(-first // self.shards(layout)) * prod(rest)

    def shards(self, layout: ParallelLayout) -> int:
        """How many ranks FSDP gathers it from."""
        return layout.dp_shard // layout.ep if ".experts." in self.name else layout.dp_shard

    def _shape(self, layout: ParallelLayout) -> tuple[int, ...]:
        """Its shape after tensor and expert parallelism; a scalar has one axis."""
        first, *rest = self.shape or (1,)
        if ".experts." in self.name:
            return first // layout.ep, *rest
        if _OUTPUTS.fullmatch(self.name):
            return first // layout.tp, *rest
        if _INPUTS.fullmatch(self.name):
            return first, rest[0] // layout.tp
        return first, *rest


class UnitSizes(NamedTuple):
    """How many numbers of an FSDP unit a rank gathers, receives from other ranks for it, and stores."""

    gathered: int
    received: float
    local: int
    trained_gathered: int
    trained_local: int


def unit_sizes(unit: list[Weight], layout: ParallelLayout) -> UnitSizes:
    """The sizes of an FSDP unit that holds these weights."""
    trained = [weight for weight in unit if weight.trained]
    return UnitSizes(
        gathered=sum(weight.gathered(layout) for weight in unit),
        received=sum(weight.gathered(layout) * (1 - 1 / weight.shards(layout)) for weight in unit),
        local=sum(weight.local(layout) for weight in unit),
        trained_gathered=sum(weight.gathered(layout) for weight in trained),
        trained_local=sum(weight.local(layout) for weight in trained),
    )

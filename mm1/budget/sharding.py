"""How many numbers of each weight a rank stores, gathers and receives under FSDP, tensor and expert parallelism."""

import re
from math import prod
from typing import NamedTuple

from mm1.budget.parallel_layout import ParallelLayout

TP_SHARDED = re.compile(
    r"decoder\.blocks\.\d+\.(attention\.(query|key|value|out)|feed_forward\.(gate|up|down))\.weight"
)
"""Matrices that tensor parallelism shards."""


class Weight(NamedTuple):
    """One tensor of the model."""

    name: str
    shape: tuple[int, ...]
    trained: bool

    @property
    def unit(self) -> str:
        """The FSDP unit it is gathered with: a block, the rest of the encoder, the connector, or "" for the root."""
        prefix = re.match(r"(vision|decoder)\.blocks\.\d+|vision|connector", self.name)
        return prefix[0] if prefix else ""

    def gathered(self, layout: ParallelLayout) -> int:
        """How many of its numbers a rank computes with, once FSDP has gathered them."""
        return self._first_axis(layout) * prod(self.shape[1:])

    def local(self, layout: ParallelLayout) -> int:
        """How many of its numbers a rank stores: those of the first rank, which has the longest shard."""
        return -(-self._first_axis(layout) // self.shards(layout)) * prod(self.shape[1:])

    def shards(self, layout: ParallelLayout) -> int:
        """How many ranks FSDP gathers it from."""
        return layout.dp_shard // layout.ep if ".experts." in self.name else layout.dp_shard

    def _first_axis(self, layout: ParallelLayout) -> int:
        """The length of its first axis after tensor and expert parallelism."""
        length = self.shape[0] if self.shape else 1
        if ".experts." in self.name:
            return length // layout.ep
        return length // layout.tp if TP_SHARDED.fullmatch(self.name) else length


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

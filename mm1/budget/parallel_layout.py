"""The ways in which ranks can share the work of a run."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from mm1.config.model import DecoderConfig
from mm1.config.run import RunConfig
from mm1.objectives.index import objective_of


class ParallelLayout(NamedTuple):
    """How ranks share the work, as in `ParallelConfig`, and how many sequences one forward pass has."""

    dp_replicate: int = 1
    dp_shard: int = 1
    tp: int = 1
    ep: int = 1
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    micro_batch_size: int = 1

    @property
    def ranks(self) -> int:
        return self.dp_replicate * self.dp_shard * self.tp

    @property
    def data_ranks(self) -> int:
        """Ranks with sequences of their own; the ranks of one tensor-parallel group count as one."""
        return self.dp_replicate * self.dp_shard

    def overrides(self) -> str:
        """The same layout as arguments of `mm1 train`."""
        names = ("dp_replicate", "dp_shard", "tp", "ep", "activation_checkpointing")
        return " ".join(
            [*(f"parallel.{name}={getattr(self, name)}" for name in names), f"micro_batch_size={self.micro_batch_size}"]
        )


def layouts(run: RunConfig, ranks: int, *, node: int) -> Iterator[ParallelLayout]:
    """Every layout of `ranks` ranks that `parallel.layout` accepts; `node` is the number of devices of a node."""
    decoder = run.model.decoder
    for tp in (1, 2, 4, 8) if "decoder" in objective_of(run).parts else (1,):
        sharded = (decoder.heads, decoder.kv_heads, decoder.mlp_width)
        if tp > node or ranks % tp or any(size % tp for size in sharded):
            continue
        data_ranks = ranks // tp
        for dp_shard in divisors(data_ranks):
            for ep in divisors(dp_shard) if decoder.sparse.experts else [1]:
                if ep > 1 and not _divides_evenly(decoder, ep, rest=dp_shard // ep):
                    continue
                for micro_batch_size in (
                    divisors(run.batch_size // data_ranks) if run.batch_size % data_ranks == 0 else []
                ):
                    for kind in ("none", "selective", "full"):
                        yield ParallelLayout(data_ranks // dp_shard, dp_shard, tp, ep, kind, micro_batch_size)


def _divides_evenly(decoder: DecoderConfig, ep: int, *, rest: int) -> bool:
    """Whether `ep` ranks get equal numbers of experts, and `rest` ranks equal shards of each expert's matrices."""
    return not (decoder.sparse.experts % ep or decoder.mlp_width % rest or decoder.width % rest)


def divisors(number: int) -> list[int]:
    """All divisors of a number, the smallest first."""
    return [n for n in range(1, number + 1) if number % n == 0]

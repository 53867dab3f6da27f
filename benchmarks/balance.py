"""How unevenly images are spread over the ranks of a step, and how much padding the encoder computes; sample's mix.

    python benchmarks/balance.py [--steps 200]

First table: the images of the busiest rank divided by the mean, over the steps of a run, with the sequences of a step
in order and balanced by images; then the same for the micro-batches that run at the same time (FSDP's ranks wait for
each other). Second table: padding images that the encoder computes, with counts padded to multiples of eight and to
mm1's sizes, and the number of different sizes (shapes to compile). Nothing is decoded: the plan has the counts.
"""

import argparse

import numpy as np
from rich.console import Console
from rich.table import Table

from mm1.config.run import DataConfig, SourceConfig
from mm1.data.loader import Sequences
from mm1.data.microbatches import micro_batches, of_rank, padded
from mm1.tiling import TileSpec

MIX = {
    "captions": SourceConfig(store="sample:captions-train", share=9),
    "interleaved": SourceConfig(store="sample:interleaved-train", share=9),
    "text": SourceConfig(store="sample:text-train", share=2),
}


def waiting(images: np.ndarray, ranks: list[list[list[int]]]) -> tuple[float, float]:
    """Busiest rank over mean rank: of the whole step, and summed over the micro-batches that run at the same time."""
    counts = np.array([[images[batch].sum() for batch in rank] for rank in ranks])
    mean = max(counts.sum() / len(ranks), 1)
    return counts.sum(1).max() / mean, counts.max(0).sum() / mean


def in_order(sequences: int, micro_batch_size: int) -> list[list[int]]:
    return [list(range(first, first + micro_batch_size)) for first in range(0, sequences, micro_batch_size)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    sequences = Sequences(DataConfig(sources=MIX, workers=0), tile=TileSpec(96, 16), seed=0, batch_size=64)
    table = Table(title="images of the busiest rank over the mean rank's")
    for column in (
        "batch",
        "micro",
        "ranks",
        "step, in order",
        "step, balanced",
        "at a time, in order",
        "at a time, balanced",
    ):
        table.add_column(column, justify="right")
    sizes = Table(title="padding images that the encoder computes")
    for column in ("batch", "micro", "to eights", "sizes", "mm1", "sizes"):
        sizes.add_column(column, justify="right")
    for batch_size, micro_batch_size in ((8, 8), (64, 8), (64, 4), (64, 1)):
        steps = [
            np.array([sequences.images(n) for n in range(step * batch_size, (step + 1) * batch_size)])
            for step in range(options.steps)
        ]
        balanced = [micro_batches(images.tolist(), micro_batch_size=micro_batch_size) for images in steps]
        for world in (2, 4, 8):
            if batch_size % (micro_batch_size * world):
                continue
            ratios = []
            for images, batches in zip(steps, balanced, strict=True):
                each = batch_size // micro_batch_size // world
                plain = in_order(batch_size, micro_batch_size)
                plain_ranks = [plain[rank * each : (rank + 1) * each] for rank in range(world)]
                ours = [of_rank(batches, rank=rank, world=world) for rank in range(world)]
                ratios.append((*waiting(images, plain_ranks), *waiting(images, ours)))
            step, at_once, our_step, our_at_once = np.mean(ratios, axis=0)
            figures = (f"{figure:.3f}" for figure in (step, our_step, at_once, our_at_once))
            table.add_row(str(batch_size), str(micro_batch_size), str(world), *figures)
        counts = [
            int(images[batch].sum()) for images, batches in zip(steps, balanced, strict=True) for batch in batches
        ]
        counts_plain = [int(images[b].sum()) for images in steps for b in in_order(batch_size, micro_batch_size)]
        shares = []
        for real, filled in (
            (counts_plain, [max(8, -(-count // 8) * 8) for count in counts_plain]),
            (counts, [padded(count) for count in counts]),
        ):
            shares += [f"{sum(filled) / sum(real) - 1:.1%}", str(len(set(filled)))]
        sizes.add_row(str(batch_size), str(micro_batch_size), *shares)
    console = Console(width=120)
    console.print(table)
    console.print(sizes)


if __name__ == "__main__":
    main()

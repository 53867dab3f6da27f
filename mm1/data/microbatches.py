"""The sequences of a step, divided into micro-batches and among ranks so that ranks finish together.

Both follow from positions and tile counts alone.
"""

from collections.abc import Sequence
from heapq import heapify, heappop, heappush


def micro_batches(images: Sequence[int], *, micro_batch_size: int) -> list[list[int]]:
    """The step's sequences (numbers within it) in micro-batches of `micro_batch_size`, most tiles first.

    `images` are the tiles of each sequence. Sequences go, those with most tiles first, to the micro-batch with the
    fewest tiles that isn't full (longest processing time first). Which sequences go together depends on the step only,
    so every number of ranks computes the same micro-batches.
    """
    batches: list[list[int]] = [[] for _ in range(len(images) // micro_batch_size)]
    open_ = [(0, number) for number in range(len(batches))]  # tiles so far, micro-batch
    heapify(open_)
    for sequence in sorted(range(len(images)), key=lambda sequence: (-images[sequence], sequence)):
        total, number = heappop(open_)
        batches[number].append(sequence)
        if len(batches[number]) < micro_batch_size:
            heappush(open_, (total + images[sequence], number))
    batches = [sorted(batch) for batch in batches]
    return sorted(batches, key=lambda batch: (-sum(images[sequence] for sequence in batch), batch[0]))


def of_rank(batches: Sequence[list[int]], *, rank: int, world: int) -> list[list[int]]:
    """The micro-batches of one rank. Each micro-batch belongs to exactly one rank.

    The micro-batches that ranks compute at the same time are neighbours in the order of tile counts. The order of the
    ranks is reversed every other time, so that their totals are about equal too.
    """
    turns = range(0, len(batches), world)
    return [batches[first + (world - 1 - rank if turn % 2 else rank)] for turn, first in enumerate(turns)]


def padded(images: int) -> int:
    """How many tiles the encoder computes for `images` real ones: less than 5 % more, of few sizes for compiled code.

    At least 2: every rank runs the encoder, and the compiler takes a single one as a shape of its own.
    """
    size = 2
    while size < images:
        size = max(size + 1, size * 21 // 20)
    return size

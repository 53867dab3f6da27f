"""The rows of a step to micro-batches and ranks: by position and image counts alone, so that ranks finish together."""

from collections.abc import Sequence
from heapq import heapify, heappop, heappush


def micro_batches(images: Sequence[int], *, micro_batch_size: int) -> list[list[int]]:
    """The step's rows (numbers within it) in micro-batches of `micro_batch_size`, most images first.

    Rows go, those with most images first, to the micro-batch with the fewest images that has room (LPT). Which rows
    stand together depends on the step only, so every number of ranks computes the same micro-batches.
    """
    batches: list[list[int]] = [[] for _ in range(len(images) // micro_batch_size)]
    open_ = [(0, number) for number in range(len(batches))]  # images so far, micro-batch
    heapify(open_)
    for row in sorted(range(len(images)), key=lambda row: (-images[row], row)):
        total, number = heappop(open_)
        batches[number].append(row)
        if len(batches[number]) < micro_batch_size:
            heappush(open_, (total + images[row], number))
    batches = [sorted(batch) for batch in batches]
    return sorted(batches, key=lambda batch: (-sum(images[row] for row in batch), batch[0]))


def of_rank(batches: Sequence[list[int]], *, rank: int, world: int) -> list[list[int]]:
    """The micro-batches of one rank. All ranks together have each once.

    What ranks do at the same time are neighbours in the order of image counts; who gets the largest turns round
    from one micro-batch to the next, so that their sums are alike too.
    """
    turns = range(0, len(batches), world)
    return [batches[first + (world - 1 - rank if turn % 2 else rank)] for turn, first in enumerate(turns)]


def padded(images: int) -> int:
    """How many images the encoder is given for `images` real ones: under 5 % more, of few sizes for compiled code.

    At least 1, so that every rank runs the encoder.
    """
    size = 1
    while size < images:
        size = max(size + 1, size * 21 // 20)
    return size

"""Items packed into sequences on two resources: positions and tiles. Equal items always give equal sequences."""

from bisect import bisect_right

import numpy as np

LONG = 3
"""Items longer than 1 / LONG of a sequence are long: each opens a sequence of its own, the longest first."""

CANDIDATES = 16
"""Items among which the last ones of a sequence are selected; four times as many where these leave a gap."""

GAP = 512
"""A sequence is full enough when less than 1 / GAP of it is empty."""


def pack(length: np.ndarray, images: np.ndarray, *, sequence_length: int, max_images: int) -> list[list[int]]:
    """Sequences of item numbers, none over `sequence_length` positions or `max_images` tiles.

    Minimum bin slack (Gupta and Ho 1999, https://doi.org/10.1080/095372899233244): the longest item opens a sequence if
    it is long; items of all lengths alike fill it, so that sequences resemble each other; and the subset of a few
    candidates that leaves the least space completes it. That subset is exact: the sums that subsets reach are the bits
    of one integer.

    Raises:
        ValueError: an item doesn't fit an empty sequence.
    """
    if len(length) and (int(length.max()) > sequence_length or int(images.max()) > max_images):
        raise ValueError(
            f"a span of {length.max()} positions and {images.max()} images fits no sequence of "
            f"{sequence_length} positions and {max_images} images"
        )
    pool, sequences = _Pool(length, images), []
    while pool.items:
        sequence = _Sequence(pool, space=sequence_length, images=max_images)
        if pool.lengths[-1] > sequence_length // LONG:
            sequence.take([len(pool.items) - 1])
        while sequence.fill(CANDIDATES):
            pass
        if sequence.space > sequence_length // GAP and sequence.fill(4 * CANDIDATES):
            while sequence.fill(CANDIDATES):
                pass
        sequences.append(sequence.items)
    return sequences


class _Pool:
    """The items not yet in a sequence, short to long: number, length and tiles of each."""

    def __init__(self, length: np.ndarray, images: np.ndarray):
        order = np.lexsort((images, length))
        self.items: list[int] = order.tolist()
        self.lengths: list[int] = length[order].tolist()
        self.images: list[int] = images[order].tolist()
        self.most_images = int(images.max(initial=0))
        self.least_images = int(images.min(initial=0))

    def candidates(self, space: int, images: int, *, count: int) -> list[int]:
        """Up to `count` indices into the pool of items that fit, ascending: spread evenly over all lengths that do."""
        fitting = bisect_right(self.lengths, space)
        if images >= self.most_images:
            if fitting <= count:
                return list(range(fitting))
            return [fitting * number // count - 1 for number in range(1, count + 1)]
        if images < self.least_images:
            return []
        indices = [index for index in range(fitting) if self.images[index] <= images]
        if len(indices) <= count:
            return indices
        return [indices[len(indices) * number // count - 1] for number in range(1, count + 1)]


class _Sequence:
    """A sequence that is filled from a pool; `space` and `images` are the positions and tiles it can still take."""

    def __init__(self, pool: _Pool, *, space: int, images: int):
        self.pool, self.space, self.images = pool, space, images
        self.items: list[int] = []

    def take(self, indices: list[int]) -> None:
        """Move the items at `indices` of the pool (ascending) into the sequence."""
        pool = self.pool
        for index in reversed(indices):
            self.items.append(pool.items.pop(index))
            self.space -= pool.lengths.pop(index)
            self.images -= pool.images.pop(index)

    def fill(self, count: int) -> bool:
        """Take some of `count` candidates: half of them while much space is left, else those that fill it best."""
        indices = self.pool.candidates(self.space, self.images, count=count)
        if not indices:
            return False
        lengths = [self.pool.lengths[index] for index in indices]
        images = [self.pool.images[index] for index in indices]
        half = slice(len(indices) % 2, None, 2)
        if 4 * self.space > 3 * sum(lengths) and len(indices) == count and sum(images[half]) <= self.images:
            self.take(indices[half])
        else:
            best = _fullest(lengths, images, space=self.space, most_images=self.images)
            self.take([indices[number] for number in best])
        return True


def _fullest(lengths: list[int], images: list[int], *, space: int, most_images: int) -> list[int]:
    """The items, ascending, whose lengths add up to the most within `space`, with at most `most_images` tiles.

    Bit `length + images * stride` of `reached[n]` says whether a subset of the first n items has that sum.
    """
    levels = most_images if sum(images) > most_images else 0
    stride = 2 * space + 2  # a sum past `space` stays within its level, where the mask removes it
    level = (1 << (space + 1)) - 1
    mask = sum(level << number * stride for number in range(levels + 1))
    steps = [length + (count * stride if levels else 0) for length, count in zip(lengths, images, strict=True)]
    reached = [1]
    for step in steps:
        reached.append((reached[-1] | reached[-1] << step) & mask)
    total, at = max(
        (((reached[-1] >> number * stride) & level).bit_length() - 1, -number) for number in range(levels + 1)
    )
    at = total - at * stride
    selected = []
    for number in range(len(steps) - 1, -1, -1):
        if not reached[number] >> at & 1:
            selected.append(number)
            at -= steps[number]
    return selected[::-1]

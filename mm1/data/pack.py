"""Items into rows, on two resources: places and images. The same items always give the same rows."""

from bisect import bisect_right

import numpy as np

LONG = 3
"""Items of more than 1 / LONG of a row are long: each opens a row of its own, the longest first."""

CANDIDATES = 16
"""Items among which the last ones of a row are chosen; four times as many where these leave a gap."""

GAP = 512
"""A row is full enough when less than 1 / GAP of it is empty."""


def pack(length: np.ndarray, images: np.ndarray, *, sequence_length: int, max_images: int) -> list[list[int]]:
    """Rows of item numbers, none over `sequence_length` places or `max_images` images.

    Minimum bin slack (Gupta and Ho 1999, https://doi.org/10.1080/095372899233244): a row is opened by the longest
    item if that is long, filled from all lengths alike so that rows are alike, and finished by the subset of a few
    candidates that leaves the least room, found exactly: the sums that subsets reach are the bits of one integer.

    Raises:
        ValueError: an item fits no empty row.
    """
    if len(length) and (int(length.max()) > sequence_length or int(images.max()) > max_images):
        raise ValueError(
            f"a span of {length.max()} places and {images.max()} images fits no row of "
            f"{sequence_length} places and {max_images} images"
        )
    pool, rows = _Pool(length, images), []
    while pool.items:
        row = _Row(pool, room=sequence_length, pictures=max_images)
        if pool.sizes[-1] > sequence_length // LONG:
            row.take([len(pool.items) - 1])
        while row.fill(CANDIDATES):
            pass
        if row.room > sequence_length // GAP and row.fill(4 * CANDIDATES):
            while row.fill(CANDIDATES):
                pass
        rows.append(row.items)
    return rows


class _Pool:
    """The items not yet in a row, short to long: number, length and images of each."""

    def __init__(self, length: np.ndarray, images: np.ndarray):
        order = np.lexsort((images, length))
        self.items: list[int] = order.tolist()
        self.sizes: list[int] = length[order].tolist()
        self.pictures: list[int] = images[order].tolist()
        self.most_pictures = int(images.max(initial=0))
        self.least_pictures = int(images.min(initial=0))

    def candidates(self, room: int, pictures: int, *, count: int) -> list[int]:
        """Up to `count` places in the pool of items that fit, ascending: evenly over all lengths that do."""
        fitting = bisect_right(self.sizes, room)
        if pictures >= self.most_pictures:
            if fitting <= count:
                return list(range(fitting))
            return [fitting * number // count - 1 for number in range(1, count + 1)]
        if pictures < self.least_pictures:
            return []
        places = [place for place in range(fitting) if self.pictures[place] <= pictures]
        if len(places) <= count:
            return places
        return [places[len(places) * number // count - 1] for number in range(1, count + 1)]


class _Row:
    """A row being filled from a pool."""

    def __init__(self, pool: _Pool, *, room: int, pictures: int):
        self.pool, self.room, self.pictures = pool, room, pictures
        self.items: list[int] = []

    def take(self, places: list[int]) -> None:
        """Items at `places` of the pool (ascending) go into the row."""
        pool = self.pool
        for place in reversed(places):
            self.items.append(pool.items.pop(place))
            self.room -= pool.sizes.pop(place)
            self.pictures -= pool.pictures.pop(place)

    def fill(self, count: int) -> bool:
        """Take some of `count` candidates: half of them while there is much room, else those that fill it best."""
        places = self.pool.candidates(self.room, self.pictures, count=count)
        if not places:
            return False
        sizes = [self.pool.sizes[place] for place in places]
        pictures = [self.pool.pictures[place] for place in places]
        half = slice(len(places) % 2, None, 2)
        if 4 * self.room > 3 * sum(sizes) and len(places) == count and sum(pictures[half]) <= self.pictures:
            self.take(places[half])
        else:
            best = _fullest(sizes, pictures, room=self.room, most_pictures=self.pictures)
            self.take([places[number] for number in best])
        return True


def _fullest(sizes: list[int], pictures: list[int], *, room: int, most_pictures: int) -> list[int]:
    """The items, ascending, whose sizes add up to the most within `room`, with at most `most_pictures` pictures.

    Bit `size + pictures * stride` of `reached[n]` says whether a subset of the first n items has that sum.
    """
    levels = most_pictures if sum(pictures) > most_pictures else 0
    stride = 2 * room + 2  # a sum past `room` stays within its level, where the mask cuts it
    level = (1 << (room + 1)) - 1
    mask = sum(level << number * stride for number in range(levels + 1))
    steps = [size + (count * stride if levels else 0) for size, count in zip(sizes, pictures, strict=True)]
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

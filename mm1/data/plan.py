"""Which spans make row k of a source: a pure function of (lengths, image counts, seed, k).

The spans of a source, in store order, are divided into windows of a few thousand neighbours (reads
stay local). A window is packed by itself, best fit decreasing on two resources: places and images.
How many rows a window gives depends only on its lengths, never on the seed, so the rows of all
windows are counted once; an epoch deals the windows in a seeded order, and any row is found by a
binary search. Which of the equally long spans go together, and the order of rows, change by epoch.

Every span is in exactly one row of an epoch.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

WINDOW = 4096
"""Spans packed together at most: large enough for tight rows, small enough to pack in 20 ms."""

SHORT = 3
"""Items up to 1 / SHORT of a row are short: several fit into one row."""


@dataclass(frozen=True, slots=True)
class Spans:
    """What the plan needs to know of a source: one entry per span, in store order."""

    document: np.ndarray  # position of the span's document in the store
    start: np.ndarray  # first place within the encoded document
    length: np.ndarray  # places
    images: np.ndarray  # images among them

    def __len__(self) -> int:
        return len(self.length)


class Plan:
    """Rows of one source. `row(k)` answers for any k >= 0; `epoch_rows` rows make an epoch."""

    def __init__(self, spans: Spans, *, row_length: int, row_images: int, seed: tuple[int, ...]):
        if not len(spans):
            raise ValueError("a source without documents cannot be planned")
        self.spans, self.seed = spans, seed
        self._limits = (row_length, row_images)
        windows = -(-len(spans) // WINDOW)
        self._edges = np.linspace(0, len(spans), windows + 1).astype(np.int64)
        self.rows = np.array([len(self.pack(window)) for window in range(windows)], np.int64)
        self.epoch_rows = int(self.rows.sum())

    def row(self, k: int) -> np.ndarray:
        """The span numbers of row k, in the order they stand in it."""
        epoch, k = divmod(k, self.epoch_rows)
        order, ends = _window_order(self, epoch)
        place = int(np.searchsorted(ends, k, side="right"))
        first = int(ends[place - 1]) if place else 0
        return _deal(self, epoch, int(order[place]))[k - first]

    def part(self, window: int) -> slice:
        """The spans of a window."""
        return slice(int(self._edges[window]), int(self._edges[window + 1]))

    def pack(self, window: int) -> list[list[int]]:
        """The rows of a window, as numbers within it: the same in every epoch."""
        part = self.part(window)
        length, images = self._limits
        return pack(self.spans.length[part], self.spans.images[part], row_length=length, row_images=images)


@lru_cache(maxsize=8)
def _window_order(plan: Plan, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The windows in the order of an epoch, and how many rows all windows up to each one give."""
    order = np.random.default_rng((*plan.seed, epoch)).permutation(len(plan.rows))
    return order, np.cumsum(plan.rows[order])


@lru_cache(maxsize=16)
def _deal(plan: Plan, epoch: int, window: int) -> list[np.ndarray]:
    """The rows of a window in an epoch: its packing, with equal spans exchanged and rows shuffled."""
    random = np.random.default_rng((*plan.seed, epoch, window))
    part = plan.part(window)
    length, images = plan.spans.length[part], plan.spans.images[part]
    shuffled = random.permutation(len(length))
    by_shape = np.lexsort((images, length))  # spans of one shape stand together ...
    exchanged = shuffled[np.lexsort((images[shuffled], length[shuffled]))]  # ... in a seeded order
    stand_in = np.empty_like(by_shape)
    stand_in[by_shape] = exchanged
    rows = plan.pack(window)
    return [part.start + random.permutation(stand_in[rows[number]]) for number in random.permutation(len(rows))]


def pack(length: np.ndarray, images: np.ndarray, *, row_length: int, row_images: int) -> list[list[int]]:
    """Rows of item numbers, none over `row_length` places or `row_images` images; always the same ones.

    Long items first, best fit decreasing (Johnson 1973, https://dspace.mit.edu/handle/1721.1/57819). Then short
    ones, in a shuffled order, so that rows are alike: each row takes what comes until it is nearly full, and then
    the two or one of what is left that fill it best. An item that fits no empty row is a ValueError.
    """
    if len(length) and (int(length.max()) > row_length or int(images.max()) > row_images):
        raise ValueError(
            f"a span of {length.max()} places and {images.max()} images fits no row of "
            f"{row_length} places and {row_images} images"
        )
    short = length <= row_length // SHORT
    rows = _pack_long(np.flatnonzero(~short), length, images, row_length=row_length, row_images=row_images)
    pool = _Pool(np.flatnonzero(short), length, images)
    by_room = sorted(range(len(rows)), key=lambda row: row_length - int(length[rows[row]].sum()))
    for row in by_room:
        room = row_length - int(length[rows[row]].sum())
        rows[row] += pool.fill(room, row_images - int(images[rows[row]].sum()))
    while len(pool):
        rows.append(pool.fill(row_length, row_images))
    return rows


def _pack_long(
    items: np.ndarray, length: np.ndarray, images: np.ndarray, *, row_length: int, row_images: int
) -> list[list[int]]:
    rows: list[list[int]] = []
    spare_images: list[int] = []
    by_room: list[list[int]] = [[] for _ in range(row_length + 1)]  # open rows by the places they have left
    for item in items[np.lexsort((-images[items], -length[items]))].tolist():
        need, pictures = int(length[item]), int(images[item])
        found = _fullest(by_room, spare_images, need=need, pictures=pictures)
        if found is None:
            found = len(rows), row_length
            rows.append([])
            spare_images.append(row_images)
        row, room = found
        rows[row].append(item)
        spare_images[row] -= pictures
        by_room[room - need].append(row)
    return rows


def _fullest(by_room: list[list[int]], spare_images: list[int], *, need: int, pictures: int) -> tuple[int, int] | None:
    """The row with the least room that still takes the item, taken out of `by_room`, and its room."""
    for room in range(need, len(by_room)):
        rows = by_room[room]
        for place in range(len(rows) - 1, -1, -1):
            if spare_images[rows[place]] >= pictures:
                return rows.pop(place), room
    return None


class _Pool:
    """Short items not yet in a row: drawn in a shuffled order, or by shape to fill a row to the end."""

    def __init__(self, items: np.ndarray, length: np.ndarray, images: np.ndarray):
        shapes, shape_of = np.unique(np.stack([length[items], images[items]], 1), axis=0, return_inverse=True)
        self._length, self._images = shapes[:, 0], shapes[:, 1]
        shuffled = np.random.default_rng(len(items)).permutation(len(items))
        self._members: list[list[int]] = [[] for _ in shapes]  # items of a shape; the last is drawn first
        for number in shuffled[::-1].tolist():
            self._members[shape_of[number]].append(int(items[number]))
        self._draws = shape_of[shuffled].tolist()  # shapes in shuffled order, each as often as it has items
        self._next = 0
        self._left = np.bincount(shape_of, minlength=len(shapes))
        self._owed = np.zeros(len(shapes), np.int64)  # draws of a shape to skip: their items were taken to fill
        self._largest = int(self._length.max()) if len(items) else 0

    def __len__(self) -> int:
        return int(self._left.sum())

    def fill(self, room: int, pictures: int) -> list[int]:
        """Items for a row with `room` places and `pictures` images left."""
        taken: list[int] = []
        while room > 2 * self._largest and (shape := self._draw(pictures)) is not None:
            taken.append(self._take(shape))
            room -= int(self._length[shape])
            pictures -= int(self._images[shape])
        while best := self._best(room, pictures):
            for shape in best:
                taken.append(self._take(shape))
                self._owed[shape] += 1
                room -= int(self._length[shape])
                pictures -= int(self._images[shape])
        return taken

    def _draw(self, pictures: int) -> int | None:
        """The next shape in the shuffled order, unless its images are too many for the row."""
        while self._next < len(self._draws):
            shape = self._draws[self._next]
            if not self._owed[shape] and self._images[shape] > pictures:
                return None
            self._next += 1
            if not self._owed[shape]:
                return shape
            self._owed[shape] -= 1
        return None

    def _take(self, shape: int) -> int:
        self._left[shape] -= 1
        return self._members[shape].pop()

    def _best(self, room: int, pictures: int) -> list[int]:
        """The one or two shapes that leave the least room: each with the longest that still fits beside it."""
        fits = np.flatnonzero((self._left > 0) & (self._length <= room) & (self._images <= pictures))
        if not len(fits):
            return []
        length, images = self._length[fits], self._images[fits]  # ascending in length
        beside = np.searchsorted(length, room - length, side="right") - 1
        beside -= (beside == np.arange(len(fits))) & (self._left[fits] < 2)
        possible = (beside >= 0) & (images + images[beside] <= pictures)
        total = np.where(possible, length + length[beside], length)
        first = int(total.argmax())
        return [int(fits[first]), int(fits[beside[first]])] if possible[first] else [int(fits[first])]

"""Which spans make row k of a source: a pure function of (lengths, image counts, seed, k).

The spans of a source, in store order, are divided into windows of a few thousand neighbours (reads
stay local). Each window is packed once, by itself (`pack.py`); neither the seed nor the epoch changes
how many rows that gives. An epoch deals the windows in a seeded order, and any row is found by a
binary search. Which of the equally long spans go together, and the order of rows, change by epoch.

Every span is in exactly one row of an epoch.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from mm1.data.pack import pack

WINDOW = 8192
"""Spans packed together at most: large enough for tight rows, small enough for a read of neighbours."""


DTYPES = {"document": "u4", "start": "u4", "length": "u4", "images": "u2", "trained": "u4"}
DTYPES |= {"order": "u2", "sizes": "u2", "max_images": "u4", "rows": "u4"}
"""What each column of `Spans` and `Packing` holds, in memory and on disk."""


@dataclass(frozen=True, slots=True)
class Spans:
    """What the plan needs to know of a source: one entry per span, in store order."""

    document: np.ndarray  # position of the span's document in the store
    start: np.ndarray  # first place within the encoded document
    length: np.ndarray  # places
    images: np.ndarray  # images among them
    trained: np.ndarray  # places whose token is learned

    def __len__(self) -> int:
        return len(self.length)


@dataclass(frozen=True, slots=True)
class Packing:
    """The rows of every window before any seed: the costly part of a plan, made once and kept."""

    order: np.ndarray  # for each place of a window the span that stands there, as a number within the window
    sizes: np.ndarray  # for each row how many of them it takes
    max_images: np.ndarray  # for each row its images
    rows: np.ndarray  # for each window its rows


Table = TypeVar("Table", Spans, Packing)


class Plan:
    """Rows of one source. `row(k)` answers for any k >= 0; `epoch_rows` rows make an epoch."""

    def __init__(self, spans: Spans, packing: Packing, *, seed: tuple[int, ...]):
        """`packing` is what `pack_windows` makes of the spans."""
        self.spans, self.packing, self.seed = spans, packing, seed
        self.edges = _edges(len(spans))
        self.first_row = np.concatenate([[0], np.cumsum(self.packing.rows, dtype=np.int64)])
        self.epoch_rows = int(self.first_row[-1])

    def row(self, k: int) -> np.ndarray:
        """The span numbers of row k, in the order they stand in it."""
        epoch, window, place = self._find(k)
        spans, ends = _deal(self, epoch, window)
        packed = int(_row_order(self, epoch, window)[place])
        return spans[int(ends[packed - 1]) if packed else 0 : int(ends[packed])]

    def images(self, k: int) -> int:
        """How many images row k holds: known without dealing its window."""
        epoch, window, place = self._find(k)
        packed = int(_row_order(self, epoch, window)[place])
        return int(self.packing.max_images[self.first_row[window] + packed])

    def _find(self, k: int) -> tuple[int, int, int]:
        """Epoch and window of row k, and which row of the window it is."""
        epoch, k = divmod(k, self.epoch_rows)
        order, ends = _window_order(self, epoch)
        turn = int(np.searchsorted(ends, k, side="right"))
        return epoch, int(order[turn]), k - (int(ends[turn - 1]) if turn else 0)


def pack_windows(spans: Spans, *, sequence_length: int, max_images: int) -> Iterator[Packing]:
    """The packing of each window in turn."""
    edges = _edges(len(spans))
    for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        images = np.asarray(spans.images[first:last], np.int64)
        length = np.asarray(spans.length[first:last], np.int64)
        rows = pack(length, images, sequence_length=sequence_length, max_images=max_images)
        order, sizes = np.concatenate(rows), np.array([len(row) for row in rows])
        pictures = np.add.reduceat(images[order], np.cumsum(sizes) - sizes)
        yield typed(Packing, order=order, sizes=sizes, max_images=pictures, rows=[len(rows)])


def typed(table: type[Table], **columns: ArrayLike) -> Table:
    """A table of these columns, each in the type its values are kept in."""
    return table(**{name: np.asarray(column).astype(DTYPES[name]) for name, column in columns.items()})


def joined(table: type[Table], parts: Iterable[Table]) -> Table:
    """Parts of a table, one after the other."""
    kept, names = list(parts), [field.name for field in fields(table)]
    return table(**{name: np.concatenate([getattr(part, name) for part in kept]) for name in names})


def _edges(spans: int) -> np.ndarray:
    """Where each window begins, and where the last ends: windows of about the same size."""
    return np.linspace(0, spans, -(-spans // WINDOW) + 1).astype(np.int64)


@lru_cache(maxsize=8)
def _window_order(plan: Plan, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The windows in the order of an epoch, and how many rows all windows up to each one give."""
    order = np.random.default_rng((*plan.seed, epoch)).permutation(len(plan.packing.rows))
    return order, np.cumsum(plan.packing.rows[order], dtype=np.int64)


@lru_cache(maxsize=64)
def _row_order(plan: Plan, epoch: int, window: int) -> np.ndarray:
    """The packed rows of a window in the order of an epoch."""
    return np.random.default_rng((*plan.seed, epoch, window, 1)).permutation(int(plan.packing.rows[window]))


@lru_cache(maxsize=16)
def _deal(plan: Plan, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """A window's spans in an epoch, packed row after packed row, and where each row ends.

    Spans of one shape are exchanged, and the order within each row is drawn anew.
    """
    random = np.random.default_rng((*plan.seed, epoch, window, 2))
    first, last = int(plan.edges[window]), int(plan.edges[window + 1])
    length, images = np.asarray(plan.spans.length[first:last]), np.asarray(plan.spans.images[first:last])
    shuffled = random.permutation(last - first)
    by_shape = np.lexsort((images, length))  # spans of one shape stand together ...
    exchanged = shuffled[np.lexsort((images[shuffled], length[shuffled]))]  # ... in a seeded order
    stand_in = np.empty_like(by_shape)
    stand_in[by_shape] = exchanged
    sizes = plan.packing.sizes[int(plan.first_row[window]) : int(plan.first_row[window + 1])]
    row_of_place = np.repeat(np.arange(len(sizes)), sizes)
    within = np.lexsort((random.random(last - first), row_of_place))
    return first + stand_in[plan.packing.order[first:last]][within], np.cumsum(sizes, dtype=np.int64)

"""Which spans make up sequence k of a source: a pure function of (lengths, tile counts, seed, k).

The spans of a source, in store order, are divided into windows of a few thousand neighbours, so that reads stay local.
Each window is packed once, by itself (`pack.py`); its number of sequences depends neither on the seed nor on the epoch.
An epoch goes through the windows in a seeded order, and a binary search finds any sequence. Each epoch draws anew which
of the spans of equal shape go together, and the order of the sequences.

Every span is in exactly one sequence of an epoch.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from mm1.data.pack import pack

WINDOW = 8192
"""The most spans packed together: large enough for tight sequences, small enough for a read of neighbours."""


DTYPES = {"document": "u4", "start": "u4", "length": "u4", "images": "u2", "trained": "u4"}
DTYPES |= {"order": "u2", "sequence_spans": "u2", "sequence_images": "u4", "sequences": "u4"}
"""The type of each column of `Spans` and `Packing`, in memory and on disk."""


@dataclass(frozen=True, slots=True)
class Spans:
    """What the plan must know of a source: one entry per span, in store order."""

    document: np.ndarray  # position of the span's document in the store
    start: np.ndarray  # first position within the encoded document
    length: np.ndarray  # positions
    images: np.ndarray  # tiles among them
    trained: np.ndarray  # tokens among them that are trained

    def __len__(self) -> int:
        return len(self.length)


@dataclass(frozen=True, slots=True)
class Packing:
    """The sequences of every window before any seed: the costly part of a plan, computed once and kept."""

    order: np.ndarray  # the spans of each window, sequence after sequence, by their numbers within the window
    sequence_spans: np.ndarray  # for each sequence, how many spans it has
    sequence_images: np.ndarray  # for each sequence, how many tiles it has
    sequences: np.ndarray  # for each window, how many sequences it has


Table = TypeVar("Table", Spans, Packing)


class Plan:
    """The sequences of one source. `sequence(k)` answers for any k >= 0; an epoch has `epoch_sequences`."""

    def __init__(self, spans: Spans, packing: Packing, *, seed: tuple[int, ...]):
        """`packing` is what `pack_windows` makes of the spans."""
        self.spans, self.packing, self.seed = spans, packing, seed
        self.edges = _edges(len(spans))
        self.first_sequence = np.concatenate([[0], np.cumsum(self.packing.sequences, dtype=np.int64)])
        self.epoch_sequences = int(self.first_sequence[-1])

    def sequence(self, k: int) -> np.ndarray:
        """The span numbers of sequence k, in their order within it."""
        epoch, window, offset = self._find(k)
        spans, ends = _shuffle_spans(self, epoch, window)
        packed = int(_sequence_order(self, epoch, window)[offset])
        return spans[int(ends[packed - 1]) if packed else 0 : int(ends[packed])]

    def images(self, k: int) -> int:
        """How many tiles sequence k has, without shuffling its window."""
        epoch, window, offset = self._find(k)
        packed = int(_sequence_order(self, epoch, window)[offset])
        return int(self.packing.sequence_images[self.first_sequence[window] + packed])

    def _find(self, k: int) -> tuple[int, int, int]:
        """The epoch and window of sequence k, and its number within the window."""
        epoch, k = divmod(k, self.epoch_sequences)
        order, ends = _window_order(self, epoch)
        turn = int(np.searchsorted(ends, k, side="right"))
        return epoch, int(order[turn]), k - (int(ends[turn - 1]) if turn else 0)


def pack_windows(spans: Spans, *, sequence_length: int, max_images: int) -> Iterator[Packing]:
    """The packing of each window in turn."""
    edges = _edges(len(spans))
    for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        images = np.asarray(spans.images[first:last], np.int64)
        length = np.asarray(spans.length[first:last], np.int64)
        sequences = pack(length, images, sequence_length=sequence_length, max_images=max_images)
        order, counts = np.concatenate(sequences), np.array([len(sequence) for sequence in sequences])
        yield typed(
            Packing,
            order=order,
            sequence_spans=counts,
            sequence_images=np.add.reduceat(images[order], np.cumsum(counts) - counts),
            sequences=[len(sequences)],
        )


def typed(table: type[Table], **columns: ArrayLike) -> Table:
    """A table of these columns, each converted to the type it is kept in."""
    return table(**{name: np.asarray(column).astype(DTYPES[name]) for name, column in columns.items()})


def joined(table: type[Table], parts: Iterable[Table]) -> Table:
    """The parts of a table, concatenated."""
    kept, names = list(parts), [field.name for field in fields(table)]
    return table(**{name: np.concatenate([getattr(part, name) for part in kept]) for name in names})


def _edges(spans: int) -> np.ndarray:
    """Where each window begins, and where the last ends: windows of about the same size."""
    return np.linspace(0, spans, -(-spans // WINDOW) + 1).astype(np.int64)


@lru_cache(maxsize=8)
def _window_order(plan: Plan, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The windows in the order of an epoch, and the running total of their sequences."""
    order = np.random.default_rng((*plan.seed, epoch)).permutation(len(plan.packing.sequences))
    return order, np.cumsum(plan.packing.sequences[order], dtype=np.int64)


@lru_cache(maxsize=64)
def _sequence_order(plan: Plan, epoch: int, window: int) -> np.ndarray:
    """The packed sequences of a window in the order of an epoch."""
    return np.random.default_rng((*plan.seed, epoch, window, 1)).permutation(int(plan.packing.sequences[window]))


@lru_cache(maxsize=16)
def _shuffle_spans(plan: Plan, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """A window's spans in an epoch, packed sequence after packed sequence, and where each sequence ends.

    Spans of equal shape are exchanged, and the order within each sequence is drawn anew.
    """
    random = np.random.default_rng((*plan.seed, epoch, window, 2))
    first, last = int(plan.edges[window]), int(plan.edges[window + 1])
    length, images = np.asarray(plan.spans.length[first:last]), np.asarray(plan.spans.images[first:last])
    shuffled = random.permutation(last - first)
    by_shape = np.lexsort((images, length))  # spans of equal shape are neighbours ...
    exchanged = shuffled[np.lexsort((images[shuffled], length[shuffled]))]  # ... in a seeded order
    substitute = np.empty_like(by_shape)
    substitute[by_shape] = exchanged
    counts = plan.packing.sequence_spans[int(plan.first_sequence[window]) : int(plan.first_sequence[window + 1])]
    sequence_of_span = np.repeat(np.arange(len(counts)), counts)
    within = np.lexsort((random.random(last - first), sequence_of_span))
    return first + substitute[plan.packing.order[first:last]][within], np.cumsum(counts, dtype=np.int64)

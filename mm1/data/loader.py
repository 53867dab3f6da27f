"""Rows -> Batch, in workers. The loader's whole state is one integer: the next row of the run.

Row n of a run is the same on any number of ranks and workers: `mixture` says which source fills it,
`plan` which spans, and both answer from n alone.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mm1.config import DataConfig
from mm1.data.encode import Span, cut, encode_many
from mm1.data.image import ImageError, load
from mm1.data.mixture import Mixture
from mm1.data.plan import Plan, Spans
from mm1.data.store import Store, open_store
from mm1.data.tokenizer import Tokenizer, load_tokenizer
from mm1.document import IGNORED, Batch, Document, Encoded

log = logging.getLogger("mm1")


@dataclass(frozen=True, slots=True)
class Source:
    """An opened source: its documents, the spans they are cut into, and which spans make row k."""

    name: str
    store: Store
    spans: Spans
    plan: Plan
    dropped: dict[str, int]  # documents that cannot be trained on, by reason


class Rows:
    """The rows of a run, by number. Reads documents when asked; holds only lengths."""

    def __init__(self, data: DataConfig, *, image_size: int, seed: int, stores: dict[str, str] | None = None):
        """`stores` (name -> store) replaces the config's sources, one row each in turn: validation."""
        self.data, self.image_size = data, image_size
        self.tokenizer = load_tokenizer(data.tokenizer)
        named = stores or {name: source.store for name, source in data.sources.items()}
        shares = [1] * len(named) if stores else [source.share for source in data.sources.values()]
        if not named:
            raise ValueError("the run has no data; add a source with data.sources.NAME.store=FOLDER")
        self.sources = [
            open_source(
                name,
                open_store(store),
                self.tokenizer,
                data=data,
                seed=(seed, 2, number),
                only="*" if stores else data.sources[name].only,
            )
            for number, (name, store) in enumerate(named.items())
        ]
        self.mixture = Mixture(shares, seed)

    @property
    def names(self) -> list[str]:
        return [source.name for source in self.sources]

    def batch(self, numbers: list[int]) -> Batch:
        """Rows `numbers` of the run, packed, with their pictures decoded."""
        length = self.data.row_length
        tokens_BT = torch.zeros(len(numbers), length, dtype=torch.int64)
        targets_BT = torch.full_like(tokens_BT, IGNORED)
        document_BT, position_BT = torch.zeros_like(tokens_BT), torch.zeros_like(tokens_BT)
        pictures: list[np.ndarray] = []
        broken: list[str] = []
        origins = []
        for row, number in enumerate(numbers):
            origin, k = self.mixture.source(number)
            origins.append(origin)
            place = 0
            for order, (name, span) in enumerate(self._spans(self.sources[origin], k), start=1):
                stop = place + len(span.tokens)
                here = slice(place, stop)
                ids = torch.from_numpy(span.tokens.astype(np.int64))
                learned = torch.from_numpy(span.train[1:])
                tokens_BT[row, here] = ids
                targets_BT[row, place : stop - 1] = torch.where(learned, ids[1:], IGNORED)
                document_BT[row, here] = order
                position_BT[row, here] = torch.arange(len(ids))
                for image, data in enumerate(span.images):
                    pictures.append(self._pixels(data, f"{name}, image {image}", broken))
                place = stop
        return Batch(
            tokens_BT=tokens_BT,
            targets_BT=targets_BT,
            document_BT=document_BT,
            position_BT=position_BT,
            images_NCYX=self._stack(pictures),
            images=len(pictures),
            source_B=torch.tensor(origins),
            broken=tuple(broken),
        )

    def _spans(self, source: Source, k: int) -> Iterator[tuple[str, Encoded]]:
        """The spans of a source's row k, each with its document's name."""
        numbers = source.plan.row(k)
        spans = source.spans
        documents = source.store.take(spans.document[numbers].tolist())
        encoded = encode_many(documents, self.tokenizer, image_tokens=self.data.image_tokens)
        for number, document, whole in zip(numbers.tolist(), documents, encoded, strict=True):
            start = int(spans.start[number])
            part = self._slice(whole, start, start + int(spans.length[number]))
            yield f"{source.name}: {document.id}", part

    def _slice(self, whole: Encoded, start: int, stop: int) -> Encoded:
        places = whole.tokens == self.tokenizer.image
        before = int(places[:start].sum()) // self.data.image_tokens
        inside = int(places[start:stop].sum()) // self.data.image_tokens
        images = whole.images[before : before + inside]
        return Encoded(whole.tokens[start:stop], whole.train[start:stop], images)

    def _pixels(self, data: bytes, name: str, broken: list[str]) -> np.ndarray:
        try:
            return load(data, self.image_size)
        except ImageError as error:
            broken.append(f"{name}: {error}")
            return np.full((3, self.image_size, self.image_size), 128, np.uint8)

    def _stack(self, pictures: list[np.ndarray]) -> torch.Tensor:
        """All pictures, and black ones up to a multiple of eight: few shapes for compiled code.

        At least eight, so that every rank runs the encoder; none in a run that allows no images.
        """
        padded = max(8, -(-len(pictures) // 8) * 8) if self.data.row_images else 0
        images_NCYX = torch.zeros(padded, 3, self.image_size, self.image_size, dtype=torch.uint8)
        for number, picture in enumerate(pictures):
            images_NCYX[number] = torch.from_numpy(picture)
        return images_NCYX


def open_source(
    name: str, store: Store, tokenizer: Tokenizer, *, data: DataConfig, seed: tuple[int, ...], only: str = "*"
) -> Source:
    """The source, its documents measured and planned. Reads all texts once and no image.

    `only` is a pattern (`*-galleries`): documents with another `source` of their own are passed over.

    Raises:
        ValueError: no document can be trained on, or images where a row may hold none.
    """
    breaks = tokenizer.breaks()
    found: list[tuple[int, Span]] = []
    dropped: Counter[str] = Counter()
    documents = ((p, d) for p, d in enumerate(store.scan(with_images=False)) if fnmatchcase(d.source, only))
    for position, encoded in _measured(documents, tokenizer, image_tokens=data.image_tokens):
        if encoded.images and not data.row_images:
            raise ValueError(f"source {name!r} has images but data.row_images is 0; set it to 1 or more")
        if not encoded.train.any():
            dropped["nothing to learn (empty text)"] += 1
            continue
        parts_of = cut(
            encoded,
            breaks,
            image=tokenizer.image,
            image_tokens=data.image_tokens,
            row_length=data.row_length,
            row_images=data.row_images,
        )
        taught = [span for span in parts_of if encoded.train[span.start + 1 : span.stop].any()]
        dropped["parts of a long document without text to learn"] += len(parts_of) - len(taught)
        found += [(position, span) for span in taught]
    if not found:
        raise ValueError(
            f"source {name!r} ({store.path}) has no document with text to learn among those whose source is {only!r}; "
            f"dropped: {dict(dropped)}"
        )
    for reason, count in (+dropped).items():
        log.warning("source %s: left out %d: %s", name, count, reason)
    spans = Spans(
        document=np.array([position for position, _ in found]),
        start=np.array([span.start for _, span in found]),
        length=np.array([span.stop - span.start for _, span in found]),
        images=np.array([span.images for _, span in found]),
    )
    plan = Plan(spans, row_length=data.row_length, row_images=data.row_images, seed=seed)
    return Source(name, store, spans, plan, dict(dropped))


def _measured(
    documents: Iterator[tuple[int, Document]], tokenizer: Tokenizer, *, image_tokens: int
) -> Iterator[tuple[int, Encoded]]:
    """Each document's position and encoded form, a thousand at a time."""
    while part := list(islice(documents, 1024)):
        encoded = encode_many([document for _, document in part], tokenizer, image_tokens=image_tokens)
        yield from zip([position for position, _ in part], encoded, strict=True)


class MicroBatches(Dataset[Batch]):
    """Micro-batches by number: the rows of a step are dealt to micro-batches and ranks in turn."""

    def __init__(self, rows: Rows, *, micro_rows: int):
        self.rows, self.micro_rows = rows, micro_rows

    def __getitem__(self, number: int) -> Batch:
        first = number * self.micro_rows
        return self.rows.batch(list(range(first, first + self.micro_rows)))


def batches(
    rows: Rows, *, start_row: int, batch_rows: int, micro_rows: int, rank: int = 0, world: int = 1
) -> Iterator[list[Batch]]:
    """For each step from `start_row` on, the micro-batches of this rank. Never ends.

    Raises:
        ValueError: the rows of a step cannot be dealt evenly.
    """
    each, left = divmod(batch_rows, micro_rows * world)
    if left or start_row % batch_rows:
        raise ValueError(f"batch_rows {batch_rows} must be a multiple of micro_rows x ranks = {micro_rows} x {world}")

    def numbers() -> Iterator[int]:
        step = start_row // batch_rows
        while True:
            first = (step * world + rank) * each
            yield from range(first, first + each)
            step += 1

    workers = rows.data.workers
    stream = iter(
        DataLoader(
            MicroBatches(rows, micro_rows=micro_rows),
            sampler=numbers(),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            multiprocessing_context="spawn" if workers else None,  # Lance's threads do not survive a fork
            pin_memory=torch.cuda.is_available(),
        )
    )
    while True:
        yield [next(stream) for _ in range(each)]

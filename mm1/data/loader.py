"""Rows -> Batch, in workers. The loader's whole state is one integer: the next row of the run.

Row n of a run is the same on any number of ranks and workers: `mixture` says which source fills it,
`plan` which spans, `deal` which micro-batch of its step it stands in, and all answer from n alone.
"""

import os
from collections.abc import Iterator
from itertools import count, groupby
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mm1.config.run import DataConfig, RunConfig
from mm1.data.encode import encode_many
from mm1.data.image import ImageError, load_boxes
from mm1.data.index import Source, open_source
from mm1.data.microbatches import micro_batches, of_rank, padded
from mm1.data.mixture import Mixture, row_shares
from mm1.data.store import StoreError, open_store
from mm1.data.tiles import TileSpec, tile_spec
from mm1.data.tokenizer import load_tokenizer
from mm1.document import IGNORED, Batch, Encoded, Image


class Rows:
    """The rows of a run, by number. Reads documents when asked; holds only lengths."""

    def __init__(
        self,
        data: DataConfig,
        *,
        tile: TileSpec,
        seed: int,
        batch_size: int,
        stores: dict[str, str] | None = None,
        folder: Path | None = None,
    ):
        """Steps of the curriculum have `batch_size` rows. `folder` keeps what was measured (`data/index.py`).

        `stores` (name -> store) replaces the config's sources, one row each in turn: validation.
        """
        self.data, self.tile = data, tile
        self.tokenizer = load_tokenizer(data.tokenizer)
        named = stores or {name: source.store for name, source in data.sources.items()}
        if not named:
            raise ValueError("the run has no data; add a source with data.sources.NAME.store=FOLDER")
        self.sources = [
            open_source(
                name,
                open_store(store, tokens=self.tokenizer.fingerprint),
                self.tokenizer,
                data=data,
                tile=tile,
                seed=(seed, 2, number),
                only="*" if stores else data.sources[name].only,
                folder=folder / name if folder else None,
            )
            for number, (name, store) in enumerate(named.items())
        ]
        if stores:
            self.mixture = Mixture([1] * len(stores), seed)
            return
        first, *later = data.stages()
        changes = [(stage.step * batch_size, self._shares(stage.shares)) for stage in later]
        self.mixture = Mixture(self._shares(first.shares), seed, changes=changes)

    @property
    def names(self) -> list[str]:
        return [source.name for source in self.sources]

    def _shares(self, shares: dict[str, int]) -> list[int]:
        """Rows of each source in a deck."""
        asked = [shares.get(source.name, 0) for source in self.sources]
        if self.data.unit == "rows":
            return asked
        return row_shares(asked, [source.trained_per_row for source in self.sources])

    def images(self, number: int) -> int:
        """How many images row `number` holds: known from the plan, nothing is read."""
        origin, k = self.mixture.source(number)
        return self.sources[origin].plan.images(k)

    def batch(self, numbers: list[int]) -> Batch:
        """Rows `numbers` of the run, packed, with their pictures decoded."""
        length = self.data.sequence_length
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
                for image, (_, tiles) in enumerate(groupby(span.images, key=lambda tile: id(tile.data))):
                    pictures += self._pixels([*tiles], f"{name}, image {image}", broken)
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
        encoded = encode_many(documents, self.tokenizer, image_tokens=self.tile.tokens)
        for number, document, whole in zip(numbers.tolist(), documents, encoded, strict=True):
            start = int(spans.start[number])
            part = self._slice(whole, start, start + int(spans.length[number]))
            yield f"{source.name}: {document.id}", part

    def _slice(self, whole: Encoded, start: int, stop: int) -> Encoded:
        places = whole.tokens == self.tokenizer.image
        before = int(places[:start].sum()) // self.tile.tokens
        inside = int(places[start:stop].sum()) // self.tile.tokens
        images = whole.images[before : before + inside]
        return Encoded(whole.tokens[start:stop], whole.train[start:stop], images)

    def _pixels(self, tiles: list[Image], name: str, broken: list[str]) -> list[np.ndarray]:
        """The pixels of tiles of one picture, decoded once; grey tiles, and its name in `broken`, if it cannot be."""
        try:
            return load_boxes(tiles[0].data, self.tile.size, [tile.box for tile in tiles])
        except ImageError as error:
            broken.append(f"{name}: {error}")
            return [np.full((3, self.tile.size, self.tile.size), 128, np.uint8)] * len(tiles)

    def _stack(self, pictures: list[np.ndarray]) -> torch.Tensor:
        """All pictures, and black ones up to the next of few sizes; none in a run that allows no images."""
        size = padded(len(pictures)) if self.data.max_images else 0
        images_NCYX = torch.empty(size, 3, self.tile.size, self.tile.size, dtype=torch.uint8)
        for number, picture in enumerate(pictures):
            images_NCYX[number] = torch.from_numpy(picture)
        images_NCYX[len(pictures) :] = 0
        return images_NCYX


def rows_of(run: RunConfig, folder: Path, *, held_out: dict[str, str] | None = None) -> Rows:
    """The rows of the run in `folder`; with `held_out` (name -> store) those of a validation store instead.

    What is measured is kept in `folder/index`.
    """
    return Rows(
        run.data,
        tile=tile_spec(run.model),
        seed=0 if held_out else run.seed,
        batch_size=run.batch_size,
        stores=held_out,
        folder=folder / "index" / ("validation" if held_out else "train"),
    )


class MicroBatches(Dataset[Batch | StoreError]):
    """Micro-batches by the numbers of their rows.

    A store that cannot be read is a value: raised in a worker, torch would hand on its traceback as the message.
    """

    def __init__(self, rows: Rows):
        self.rows = rows

    def __getitem__(self, numbers: list[int]) -> Batch | StoreError:
        try:
            return self.rows.batch(numbers)
        except StoreError as error:
            return error


def _end_with_the_run(worker: int) -> None:
    """Let this worker process end when the run's process does, however that was killed.

    torch watches for another parent, but a worker's parent is the fork server, which itself lives as long as a worker.
    The pipe behind `parent_process` is held by the run's own process alone, so its end is that process's end.
    """
    run = parent_process()
    assert run is not None

    def watch() -> None:
        run.join()
        os._exit(1)

    Thread(target=watch, name="end with the run", daemon=True).start()


def batches(
    rows: Rows, *, start_row: int, batch_size: int, micro_batch_size: int, rank: int = 0, world: int = 1
) -> Iterator[list[Batch]]:
    """For each step from `start_row` on, the micro-batches of this rank. Never ends.

    Raises:
        ValueError: the rows of a step cannot be dealt evenly.
        StoreError: a store that could not be read on.
    """
    each, left = divmod(batch_size, micro_batch_size * world)
    if left or start_row % batch_size:
        raise ValueError(
            f"batch_size {batch_size} must be a multiple of micro_batch_size x ranks = {micro_batch_size} x {world}"
        )

    def numbers() -> Iterator[list[int]]:
        for first in count(start_row, batch_size):
            images = [rows.images(first + row) for row in range(batch_size)]
            for selected in of_rank(micro_batches(images, micro_batch_size=micro_batch_size), rank=rank, world=world):
                yield [first + row for row in selected]

    workers = rows.data.workers
    start = get_context("forkserver")  # Lance's threads do not survive a fork; the server has none, and torch loaded
    start.set_forkserver_preload(["mm1.data.loader"])
    stream = iter(
        DataLoader(
            MicroBatches(rows),
            sampler=numbers(),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            multiprocessing_context=start if workers else None,
            worker_init_fn=_end_with_the_run,
            pin_memory=torch.cuda.is_available(),
        )
    )
    while True:
        yield [_made(next(stream)) for _ in range(each)]


def _made(found: Batch | StoreError) -> Batch:
    if isinstance(found, StoreError):
        raise found
    return found

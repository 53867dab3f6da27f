"""Sequences -> Batch, in worker processes. The loader's whole state is one integer: the next sequence of the run.

Sequence n of a run is the same for any number of ranks and workers: `mixture` gives its source, `plan` its spans and
`microbatches` the micro-batch of its step, each as a function of n alone.
"""

import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, groupby, islice
from multiprocessing import get_context, parent_process
from operator import itemgetter
from pathlib import Path
from threading import Thread

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mm1 import dist
from mm1.config.run import DataConfig, RunConfig
from mm1.data.augment import Augmentation
from mm1.data.encode import Cutter, encode_many
from mm1.data.image import ImageError, load_tiles
from mm1.data.index import Source, open_source
from mm1.data.microbatches import micro_batches, of_rank, padded
from mm1.data.mixture import Mixture, sequence_shares
from mm1.data.store import StoreError, open_store
from mm1.data.tiles import tile_spec
from mm1.data.tokenizer import load_tokenizer
from mm1.document import IGNORED, Batch, Encoded, Tile, trained_positions
from mm1.tiling import TileSpec

MAX_WORKERS = 8
"""Processes that load data for a rank by default, at most. So many decode several times what a GPU trains on."""

NamedSpan = tuple[Callable[[], str], Encoded]
"""A span, and what reads the name of its document, which only messages need."""


class Sequences:
    """The sequences of a run, by number. Holds only lengths; documents are read when a batch needs them."""

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
        """`batch_size` turns the steps of the curriculum into sequences; `folder` keeps the index (`data/index.py`).

        `stores` (name -> store) replaces the config's sources, each giving one sequence in turn: for validation.
        """
        self.data, self.tile = data, tile
        self._augmentation = None if stores or data.augment is None else Augmentation(data.augment, seed)
        self.tokenizer = load_tokenizer(data.tokenizer)
        template = self.tokenizer.template
        if template is not None and data.max_images and not template.takes_pictures:
            self.tokenizer.template = None  # a language model learns pictures: its template has no form for them
        named = stores or {name: source.store for name, source in data.sources.items()}
        if not named:
            raise ValueError("the run has no data; add a source with data.sources.NAME.store=FOLDER")
        cutter = Cutter(self.tokenizer, tile, sequence_length=data.sequence_length, max_images=data.max_images)
        self.sources = [
            open_source(
                name,
                open_store(store, tokens=self.tokenizer.fingerprint, sizes=not tile.whole),
                cutter=cutter,
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
        """The number of sequences of each source in a deck."""
        of_sources = [shares.get(source.name, 0) for source in self.sources]
        if self.data.unit == "sequences":
            return of_sources
        return sequence_shares(of_sources, [source.trained_per_sequence for source in self.sources])

    def images(self, number: int) -> int:
        """How many tiles sequence `number` has, from the plan: nothing is read."""
        origin, k = self.mixture.source(number)
        return self.sources[origin].plan.images(k)

    def batch(self, numbers: list[int]) -> Batch:
        """Sequences `numbers` of the run, packed, with their tiles decoded."""
        sequences = self._spans(numbers)
        shape = len(numbers), self.data.sequence_length
        tokens_BT, targets_BT = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
        document_BT, position_BT = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        feature_BT = None if self.tile.in_order else np.zeros(shape, np.int64)
        positions = np.arange(self.data.sequence_length)
        images = sum(len(span.images) for _, spans in sequences for _, span in spans)
        images_NCYX = self._empty_tiles(images)
        rest_NCYX = images_NCYX.numpy()
        broken: list[str] = []
        for row, (_, spans) in enumerate(sequences):
            start = shown = 0
            for order, (read_name, span) in enumerate(spans, start=1):
                stop = start + len(span.tokens)
                here = slice(start, stop)
                tokens_BT[row, here] = span.tokens
                np.copyto(targets_BT[row, start : stop - 1], span.tokens[1:], where=span.train[1:])
                document_BT[row, here] = order
                position_BT[row, here] = positions[: stop - start]
                if feature_BT is not None and span.features is not None:
                    before = len(images_NCYX) - len(rest_NCYX)
                    feature_BT[row, here] = span.features + before * self.tile.features
                pictures = groupby(zip(span.pictures, span.images, strict=True), key=itemgetter(0))
                for image, (_, parts) in enumerate(pictures):
                    draws = None if self._augmentation is None else self._augmentation.draws(numbers[row], shown)
                    tiles = [part for _, part in parts]
                    if error := self._decode(tiles, rest_NCYX[: len(tiles)], draws):
                        broken.append(f"{read_name()}, image {image}: {error}")
                    rest_NCYX = rest_NCYX[len(tiles) :]
                    shown += 1
                start = stop
        rest_NCYX[:] = 0
        targets = torch.from_numpy(targets_BT)
        return Batch(
            tokens_BT=torch.from_numpy(tokens_BT),
            targets_BT=targets,
            document_BT=torch.from_numpy(document_BT),
            position_BT=torch.from_numpy(position_BT),
            images_NCYX=images_NCYX,
            images=images,
            source_B=torch.tensor([origin for origin, _ in sequences]),
            sequence_B=torch.tensor(numbers, dtype=torch.int64),
            broken=tuple(broken),
            feature_BT=None if feature_BT is None else torch.from_numpy(feature_BT),
            features=self.tile.features,
            trained_R=trained_positions(targets),
        )

    def _spans(self, numbers: list[int]) -> list[tuple[int, list[NamedSpan]]]:
        """The source of each sequence and its spans; a source is read once for all."""
        origins = [self.mixture.source(number) for number in numbers]
        of_sequences = [self.sources[origin].plan.sequence(k) for origin, k in origins]
        wanted: dict[int, list[int]] = {}
        for (origin, _), spans in zip(origins, of_sequences, strict=True):
            wanted.setdefault(origin, []).extend(spans.tolist())
        read = {origin: self._read(self.sources[origin], spans) for origin, spans in wanted.items()}
        return [
            (origin, list(islice(read[origin], len(spans))))
            for (origin, _), spans in zip(origins, of_sequences, strict=True)
        ]

    def _read(self, source: Source, numbers: list[int]) -> Iterator[NamedSpan]:
        """The spans of these numbers of a source; a document is read once."""
        spans = source.spans
        positions, indices = np.unique(spans.document[numbers], return_inverse=True)
        documents = source.store.take(positions.tolist(), named=False)
        encoded = list(encode_many(documents, self.tokenizer, tile=self.tile))
        starts, lengths = spans.start[numbers].tolist(), spans.length[numbers].tolist()
        for index, start, length in zip(indices.tolist(), starts, lengths, strict=True):
            part = encoded[index].part(start, start + length, features=self.tile.features)
            yield partial(_name, source, int(positions[index])), part

    def _decode(self, tiles: list[Tile], out_NCYX: np.ndarray, draws: np.random.Generator | None) -> str:
        """Write the pixels of tiles of one picture, decoded once; grey if it is unreadable, and why is returned.

        With `draws` it is augmented.
        """
        image, cuts = tiles[0].image, [tile.cut for tile in tiles]
        try:
            if draws is not None and self._augmentation is not None:
                image = self._augmentation.crop(image, draws)
            load_tiles(image, cuts, size=self.tile.size, out=out_NCYX)
        except ImageError as error:
            out_NCYX[:] = 128
            return str(error)
        if draws is not None and self._augmentation is not None:
            for tile_CYX in out_NCYX:
                tile_CYX[:] = self._augmentation.recolour(tile_CYX, draws)
        return ""

    def _empty_tiles(self, images: int) -> torch.Tensor:
        """Memory for so many tiles, and more up to one of few sizes (`padded`); none in a run that allows no images.

        A worker process takes memory that it shares with the run's process, as torch does where it collates: the tiles
        are not copied when the batch is sent.
        """
        shape = (padded(images) if self.data.max_images else 0, 3, self.tile.size, self.tile.size)
        if get_worker_info() is None or not shape[0]:
            return torch.empty(shape, dtype=torch.uint8)
        shared = torch.UntypedStorage._new_shared(math.prod(shape))
        return torch.empty(0, dtype=torch.uint8).set_(shared).view(shape)


def _name(source: Source, position: int) -> str:
    (document,) = source.store.take([position])
    return f"{source.name}: {document.id}"


def sequences_of(run: RunConfig, folder: Path, *, held_out: dict[str, str] | None = None) -> Sequences:
    """The sequences of the run in `folder`; with `held_out` (name -> store) those of validation stores instead.

    Their index is kept in `folder/index`.
    """
    return Sequences(
        run.data,
        tile=tile_spec(run.model),
        seed=0 if held_out else run.seed,
        batch_size=run.batch_size,
        stores=held_out,
        folder=folder / "index" / ("validation" if held_out else "train"),
    )


class MicroBatches(Dataset[Batch | StoreError]):
    """Micro-batches by the numbers of their sequences.

    An unreadable store is returned, not raised: torch would make a worker's traceback part of the message.
    """

    def __init__(self, sequences: Sequences):
        self.sequences = sequences

    def __getitem__(self, numbers: list[int]) -> Batch | StoreError:
        try:
            return self.sequences.batch(numbers)
        except StoreError as error:
            return error


def workers_of(data: DataConfig) -> int:
    """How many processes load data for this rank."""
    return default_workers(dist.cores(), dist.ranks_here()) if data.workers is None else data.workers


def default_workers(cores: int, ranks: int) -> int:
    """How many load data for each of a machine's ranks by default: its share of the cores, less one for itself."""
    return min(max(1, cores // ranks - 1), MAX_WORKERS)


def _end_with_the_run(worker: int) -> None:
    """End this worker process when the run's process ends, however it was killed.

    torch checks whether the parent changed, but a worker's parent is the fork server, which lives as long as a worker.
    The pipe behind `parent_process` is open in the run's own process alone, so it closes when that process ends.
    """
    run = parent_process()
    assert run is not None

    def watch() -> None:
        run.join()
        os._exit(1)

    Thread(target=watch, name="end with the run", daemon=True).start()


def batches(
    sequences: Sequences, *, start_sequence: int, batch_size: int, micro_batch_size: int, rank: int = 0, world: int = 1
) -> Iterator[list[Batch]]:
    """For each step from `start_sequence` on, the micro-batches of this rank. Never ends.

    Raises:
        ValueError: the sequences of a step cannot be divided evenly.
        StoreError: a store can no longer be read.
    """
    each, left = divmod(batch_size, micro_batch_size * world)
    if left or start_sequence % batch_size:
        raise ValueError(
            f"batch_size {batch_size} must be a multiple of micro_batch_size x ranks = {micro_batch_size} x {world}"
        )

    def numbers() -> Iterator[list[int]]:
        for first in count(start_sequence, batch_size):
            images = [sequences.images(first + offset) for offset in range(batch_size)]
            for offsets in of_rank(micro_batches(images, micro_batch_size=micro_batch_size), rank=rank, world=world):
                yield [first + offset for offset in offsets]

    workers = workers_of(sequences.data)
    start = get_context("forkserver")  # Lance's threads don't survive a fork; the server has none, but torch is loaded
    start.set_forkserver_preload(["mm1.data.loader"])
    stream = iter(
        DataLoader(
            MicroBatches(sequences),
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
        yield [_batch_or_raise(next(stream)) for _ in range(each)]


def _batch_or_raise(batch: Batch | StoreError) -> Batch:
    if isinstance(batch, StoreError):
        raise batch
    return batch

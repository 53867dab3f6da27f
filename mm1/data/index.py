"""A source opened: its documents cut into spans, its spans packed; kept on disk, so that it is done once.

The kept form is a folder of plain columns, read in place (memory maps), and `about.json`, which names
all it follows from: the content of the store, the tokenizer, the row's length and images. It stands
beside the run and can be deleted: it is made again, as it is where a crash left a column short of what `about.json`
tells. Ranks may measure at one time; the first to finish is kept.
"""

import fcntl
import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from mm1.config.run import DataConfig
from mm1.data.encode import cut, encode_many
from mm1.data.plan import DTYPES, WINDOW, Packing, Plan, Spans, Table, joined, pack_windows, typed
from mm1.data.store import Store
from mm1.data.tiles import TileSpec
from mm1.data.tokenizer import Tokenizer
from mm1.document import Encoded

log = logging.getLogger("mm1")

FORMAT = 1
"""Goes up when cutting or packing changes: what an older version measured is then measured again."""


@dataclass(frozen=True, slots=True)
class Source:
    """An opened source: its documents and which spans of them make row k."""

    name: str
    store: Store
    plan: Plan
    dropped: dict[str, int]  # what cannot be trained on, by reason
    folder: Path | None = None  # where its columns are kept

    @property
    def spans(self) -> Spans:
        return self.plan.spans

    @property
    def trained_per_sequence(self) -> float:
        """The mean number of trained tokens in a sequence, over an epoch."""
        return float(self.spans.trained.sum(dtype=np.int64)) / self.plan.epoch_sequences

    def __reduce__(self):  # a worker process maps the columns itself
        if self.folder is None:
            return Source, (self.name, self.store, self.plan, self.dropped)
        return _reopened, (self.name, self.store, self.plan.seed, self.folder)


def open_source(
    name: str,
    store: Store,
    tokenizer: Tokenizer,
    *,
    data: DataConfig,
    tile: TileSpec,
    seed: tuple[int, ...],
    only: str = "*",
    folder: Path | None = None,
) -> Source:
    """The source, its documents measured and planned: from `folder` if they were before, else reading all texts once.

    `only` is a pattern (`*-galleries`): documents with another `source` of their own are passed over.

    Raises:
        ValueError: no document can be trained on, or images where a row may hold none.
    """
    dropped: Counter[str] = Counter()
    limits = {"sequence_length": data.sequence_length, "max_images": data.max_images}
    parts = _measured(name, store, tokenizer, data=data, tile=tile, only=only, dropped=dropped)
    if folder is None:
        spans = joined(Spans, parts)
        packing = joined(Packing, pack_windows(spans, **limits))
        source = Source(name, store, Plan(spans, packing, seed=seed), dict(+dropped))
    else:
        key = {"format": FORMAT, "window": WINDOW, "store": store.fingerprint(), "tokenizer": tokenizer.fingerprint}
        key |= limits | {"image_tokens": tile.tokens, "only": only}
        kept = folder / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
        _warn_of_others(name, folder, key)
        if not _whole(kept):
            with _scratch(folder) as part:
                append(Spans, parts, part)
                append(Packing, pack_windows(mapped(Spans, part), **limits), part)
                about = {"key": key, "dropped": dict(+dropped), "order": len(_abouts(folder)), "bytes": _sizes(part)}
                (part / "about.json").write_text(json.dumps(about, indent=2))
                _put(part, kept)
        source = _reopened(name, store, seed, kept)
    for reason, count in source.dropped.items():
        log.warning("source %s: left out %d: %s", name, count, reason)
    return source


def _measured(
    name: str, store: Store, tokenizer: Tokenizer, *, data: DataConfig, tile: TileSpec, only: str, dropped: Counter[str]
) -> Iterator[Spans]:
    """The spans of the store's documents, a thousand documents at a time."""
    breaks = tokenizer.breaks()
    found = False
    documents = ((p, d) for p, d in enumerate(store.scan(with_images=False)) if fnmatchcase(d.source, only))
    while part := list(islice(documents, 1024)):
        spans: list[tuple[int, ...]] = []
        encodings = encode_many([document for _, document in part], tokenizer, image_tokens=tile.tokens)
        for (position, _), encoded in zip(part, encodings, strict=True):
            if encoded.images and not data.max_images:
                raise ValueError(f"source {name!r} has images but data.max_images is 0; set it to 1 or more")
            cuts = _taught(encoded, breaks, image=tokenizer.image, data=data, tile=tile, dropped=dropped)
            spans += [(position, *span) for span in cuts]
        if spans:
            found = True
            document, start, length, images, trained = zip(*spans, strict=True)
            yield typed(Spans, document=document, start=start, length=length, images=images, trained=trained)
    if not found:
        raise ValueError(
            f"source {name!r} ({store.path}) has no document with text to learn among those whose source is {only!r}; "
            f"dropped: {dict(dropped)}"
        )


def _taught(
    encoded: Encoded, breaks: np.ndarray, *, image: int, data: DataConfig, tile: TileSpec, dropped: Counter[str]
) -> list[tuple[int, int, int, int]]:
    """Start, length, images and trained tokens of the document's spans that teach something."""
    if not encoded.train.any():
        dropped["nothing to learn (empty text)"] += 1
        return []
    spans = cut(
        encoded,
        breaks,
        image=image,
        image_tokens=tile.tokens,
        sequence_length=data.sequence_length,
        max_images=data.max_images,
    )
    trained = [int(encoded.train[span.start + 1 : span.stop].sum()) for span in spans]
    dropped["parts of a long document without text to learn"] += trained.count(0)
    pairs = zip(spans, trained, strict=True)
    return [(span.start, span.stop - span.start, span.images, count) for span, count in pairs if count]


def _warn_of_others(name: str, folder: Path, key: dict[str, Any]) -> None:
    """Say it, at every start, when the run's first measure of this source was of another store or tokenizer."""
    for first in _abouts(folder)[:1]:
        for what in ("store", "tokenizer"):
            if first["key"][what] != key[what]:
                log.warning("source %s: the %s is not the one this run began with; its rows are others now", name, what)


def _abouts(folder: Path) -> list[dict[str, Any]]:
    """What is told of each measure kept in `folder`, the oldest first."""
    found = [_about(path.parent) for path in sorted(folder.glob("*/about.json"))]
    return sorted((about for about in found if about), key=lambda about: about.get("order", 0))


def _about(kept: Path) -> dict[str, Any]:
    """What is told of a measure; nothing when a crash left no such file, or half of one."""
    try:
        return json.loads((kept / "about.json").read_text())
    except (OSError, ValueError):
        return {}


def _sizes(kept: Path) -> dict[str, int]:
    return {f.name: (kept / f.name).stat().st_size for table in (Spans, Packing) for f in fields(table)}


def _whole(kept: Path) -> bool:
    """Whether every column has the length it was written with; the name alone survives a crash of the machine."""
    try:
        return _about(kept).get("bytes") == _sizes(kept)
    except OSError:
        return False


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A new folder within `folder`, for one measure; those that killed starts left are deleted first.

    Who measures shares the lock, so whoever gets it alone knows that nobody else does. File systems without locks
    keep what was left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in folder.glob("tmp*"):
                shutil.rmtree(left, ignore_errors=True)
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_SH)
        with TemporaryDirectory(dir=folder) as temporary:
            part = Path(temporary) / "part"
            part.mkdir()
            yield part


def append(table: type[Table], parts: Iterator[Table], folder: Path) -> None:
    """Write the parts of a table one after the other, holding one at a time."""
    files = {field.name: (folder / field.name).open("wb") for field in fields(table)}
    for part in parts:
        for name, file in files.items():
            getattr(part, name).tofile(file)
    for file in files.values():
        file.close()


def mapped(table: type[Table], folder: Path) -> Table:
    """The table whose columns `append` wrote to `folder`, read in place."""
    names = [field.name for field in fields(table)]
    return table(**{name: np.memmap(folder / name, DTYPES[name], mode="r") for name in names})


def _put(part: Path, folder: Path) -> None:
    """Give a finished part its name, unless another rank was quicker: its content is the same.

    What a crash spoiled is moved aside, to be deleted with the part's temporary folder.
    """
    if folder.is_dir() and not _whole(folder):
        with suppress(OSError):  # another rank moved it
            folder.rename(part.with_name("spoiled"))
    try:
        part.rename(folder)
    except OSError:
        if not _whole(folder):
            raise


def _reopened(name: str, store: Store, seed: tuple[int, ...], folder: Path) -> Source:
    dropped = json.loads((folder / "about.json").read_text())["dropped"]
    plan = Plan(mapped(Spans, folder), mapped(Packing, folder), seed=seed)
    return Source(name, store, plan, dropped, folder)

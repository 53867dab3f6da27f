"""The index of a source: its documents cut into spans and its spans packed, computed once and kept on disk.

An index is a folder of plain columns, read in place (memory maps), and `about.json`, whose key names all that the index
follows from: the content of the store, the tokenizer, length and tiles of a sequence. It is in the run's folder and can
be deleted: it is then computed again, as it is where a crash left a column shorter than `about.json` says. Several
ranks may compute it at once; the first to finish is kept.
"""

import fcntl
import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from mm1.data.chat_format import is_chat
from mm1.data.encode import Cutter, encode_many
from mm1.data.plan import DTYPES, WINDOW, Packing, Plan, Spans, Table, joined, pack_windows, typed
from mm1.data.store import Store
from mm1.document import Encoded

log = logging.getLogger("mm1")

UNTRAINED = "parts of a long document without text to learn"

FORMAT = 2
"""Goes up when cutting or packing changes: indexes of an older format are then computed again."""


@dataclass(frozen=True, slots=True)
class Source:
    """An opened source: its documents, and which spans of them make up sequence k."""

    name: str
    store: Store
    plan: Plan
    dropped: dict[str, int]  # documents and spans that cannot be trained on, by reason
    folder: Path | None = None  # of its index

    @property
    def spans(self) -> Spans:
        return self.plan.spans

    @property
    def has_images(self) -> bool:
        return bool(self.spans.images.any())

    @property
    def trained_per_sequence(self) -> float:
        """The mean number of trained tokens in a sequence, over an epoch."""
        return float(self.spans.trained.sum(dtype=np.int64)) / self.plan.epoch_sequences

    def __reduce__(self):  # a worker process maps the columns itself
        if self.folder is None:
            return Source, (self.name, self.store, self.plan, self.dropped)
        return _from_index, (self.name, self.store, self.plan.seed, self.folder)


def open_source(
    name: str, store: Store, *, cutter: Cutter, seed: tuple[int, ...], only: str = "*", folder: Path | None = None
) -> Source:
    """The source with its plan, from the index in `folder` if there is one, else reading all texts once.

    `only` is a pattern (`*-galleries`): documents whose own `source` doesn't match it are ignored.

    Raises:
        ValueError: no document can be trained on, or it has images that no sequence can hold.
    """
    dropped: Counter[str] = Counter()
    limits = {"sequence_length": cutter.sequence_length, "max_images": cutter.max_images}
    parts = _spans_of_documents(name, store, cutter, only=only, dropped=dropped)
    if folder is None:
        spans = joined(Spans, parts)
        packing = joined(Packing, pack_windows(spans, **limits))
        source = Source(name, store, Plan(spans, packing, seed=seed), dict(+dropped))
    else:
        key = _key(store, cutter, only)
        index = folder / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
        _warn_of_others(name, folder, key)
        if not _is_whole(index):
            with _scratch(folder) as part:
                append(Spans, parts, part)
                append(Packing, pack_windows(mapped(Spans, part), **limits), part)
                about = {"key": key, "dropped": dict(+dropped), "order": len(_abouts(folder)), "bytes": _sizes(part)}
                (part / "about.json").write_text(json.dumps(about, indent=2))
                _put(part, index)
        source = _from_index(name, store, seed, index)
    for reason, count in source.dropped.items():
        log.warning("source %s: left out %d: %s", name, count, reason)
    return source


def _key(store: Store, cutter: Cutter, only: str) -> dict[str, Any]:
    """All that an index follows from."""
    tile = cutter.tile
    template = cutter.tokenizer.template
    form: dict[str, Any] = {}
    if template is not None:
        form = {"template": hashlib.sha256(template.source.encode()).hexdigest()[:12], "system": template.takes_system}
    tiling = {} if tile.whole else {"tiling": asdict(tile.tiling), "tile_size": tile.size}
    return (
        {
            "format": FORMAT,
            "window": WINDOW,
            "store": store.fingerprint(),
            "tokenizer": cutter.tokenizer.fingerprint,
            "sequence_length": cutter.sequence_length,
            "max_images": cutter.max_images,
            "image_tokens": tile.tokens,
            "only": only,
        }
        | tiling
        | form
    )


def _spans_of_documents(
    name: str, store: Store, cutter: Cutter, *, only: str, dropped: Counter[str]
) -> Iterator[Spans]:
    """The spans of the store's documents, a thousand documents at a time; what cannot be trained on adds to `dropped`.

    Images are read only where the tiling needs their sizes and the store has no column of them.
    """
    empty = True
    scan = store.scan(with_images=not (cutter.tile.whole or store.sized))
    documents = ((position, one) for position, one in enumerate(scan) if fnmatchcase(one.source, only))
    while block := list(islice(documents, 1024)):
        spans: list[tuple[int, ...]] = []
        encodings = encode_many([document for _, document in block], cutter.tokenizer, tile=cutter.tile)
        for (position, one), encoded in zip(block, encodings, strict=True):
            _check_images(name, encoded, cutter)
            cut = _trained_beginning if is_chat(one) else _trained_spans
            spans += [(position, *span) for span in cut(encoded, cutter, dropped)]
        if spans:
            empty = False
            document, start, length, images, trained = zip(*spans, strict=True)
            yield typed(Spans, document=document, start=start, length=length, images=images, trained=trained)
    if empty:
        raise ValueError(
            f"source {name!r} ({store.path}) has no document with text to learn among those whose source is {only!r}; "
            f"dropped: {dict(dropped)}"
        )


def _check_images(name: str, encoded: Encoded, cutter: Cutter) -> None:
    if not encoded.images:
        return
    if not cutter.max_images:
        raise ValueError(f"source {name!r} has images but data.max_images is 0; set it to 1 or more")
    if cutter.tile.whole:
        return
    ((_, most),) = Counter(encoded.pictures).most_common(1)
    if most > cutter.max_images:
        raise ValueError(
            f"source {name!r} has pictures of {most} tiles, but data.max_images is {cutter.max_images}; "
            f"set it to {most} or more"
        )
    longest = max(stop - start for start, stop in encoded.extents)
    if longest + 2 > cutter.sequence_length:
        raise ValueError(
            f"source {name!r} has pictures of {most} tiles, {longest} positions each with the text around them, and a "
            f"document takes two more, but data.sequence_length is {cutter.sequence_length}; raise it or lower "
            "model.connector.tokens or model.tiling.max_tiles"
        )


def _trained_spans(encoded: Encoded, cutter: Cutter, dropped: Counter[str]) -> list[tuple[int, int, int, int]]:
    """Start, length, tiles and trained tokens of those spans of a document that have any."""
    if not encoded.train.any():
        dropped["nothing to learn (empty text)"] += 1
        return []
    spans = cutter.cut(encoded)
    trained = [int(encoded.train[span.start + 1 : span.stop].sum()) for span in spans]
    dropped[UNTRAINED] += trained.count(0)
    pairs = zip(spans, trained, strict=True)
    return [(span.start, span.stop - span.start, span.images, count) for span, count in pairs if count]


def _trained_beginning(encoded: Encoded, cutter: Cutter, dropped: Counter[str]) -> list[tuple[int, int, int, int]]:
    """The same of a chat, of which only the beginning is trained if it is longer than a sequence.

    What follows are answers to questions, and about pictures, that the model would not see.
    """
    parts: Counter[str] = Counter()
    spans = _trained_spans(encoded, cutter, parts)
    if len(spans) + parts[UNTRAINED] < 2:  # nothing is cut
        dropped.update(parts)
        return spans
    if spans and not spans[0][0]:
        dropped["ends of chats of more positions or pictures than a sequence holds"] += 1
        return spans[:1]
    dropped["chats of more positions or pictures than a sequence holds before the first answer"] += 1
    return []


def _warn_of_others(name: str, folder: Path, key: dict[str, Any]) -> None:
    """Warn, at every start, if the run's first index of this source was of another store or tokenizer."""
    for first in _abouts(folder)[:1]:
        for what in ("store", "tokenizer"):
            if first["key"][what] != key[what]:
                log.warning(
                    "source %s: the %s is not the one this run began with; its sequences differ now", name, what
                )


def _abouts(folder: Path) -> list[dict[str, Any]]:
    """What `about.json` says of each index in `folder`, the oldest first."""
    abouts = [_about(path.parent) for path in sorted(folder.glob("*/about.json"))]
    return sorted((about for about in abouts if about), key=lambda about: about.get("order", 0))


def _about(index: Path) -> dict[str, Any]:
    """What `about.json` says of an index; nothing if a crash left no such file, or half of one."""
    try:
        return json.loads((index / "about.json").read_text())
    except (OSError, ValueError):
        return {}


def _sizes(index: Path) -> dict[str, int]:
    return {f.name: (index / f.name).stat().st_size for table in (Spans, Packing) for f in fields(table)}


def _is_whole(index: Path) -> bool:
    """Whether every column has the length it was written with; a crash may leave no more than the folder's name."""
    try:
        return _about(index).get("bytes") == _sizes(index)
    except OSError:
        return False


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A new folder within `folder` for one index; those that killed processes left are deleted first.

    Every process that computes an index shares the lock, so one that gets it exclusively knows that no other does. On
    file systems without locks nothing is deleted.
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
    """Write the parts of a table one after the other, with only one in memory at a time."""
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


def _put(part: Path, index: Path) -> None:
    """Move a finished index to its folder, unless another rank was faster: its content is the same.

    An index that a crash spoiled is moved aside, to be deleted with the temporary folder of the new one.
    """
    if index.is_dir() and not _is_whole(index):
        with suppress(OSError):  # another rank moved it
            index.rename(part.with_name("spoiled"))
    try:
        part.rename(index)
    except OSError:
        if not _is_whole(index):
            raise


def _from_index(name: str, store: Store, seed: tuple[int, ...], index: Path) -> Source:
    dropped = json.loads((index / "about.json").read_text())["dropped"]
    plan = Plan(mapped(Spans, index), mapped(Packing, index), seed=seed)
    return Source(name, store, plan, dropped, index)

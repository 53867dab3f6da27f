"""A shard of the input: files that are read together, and kept or lost together."""

import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mm1.prepare.fetch import Fetcher
from mm1.prepare.watch import note_file

Key = Literal["first-dot", "last-dot"]


class InputError(ValueError):
    """Input that cannot be read as its kind; the message says which, what was expected, what to change."""


@dataclass(frozen=True, slots=True)
class Span:
    """Some records of a file: [start, stop) in bytes of JSON, in rows of tables; `first` is the number of the first."""

    start: int
    stop: int
    first: int


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How the user says that the input is laid out, and which of it is read.

    columns      what the columns are called that hold `image`, `text`, `images`, `texts`, `messages`
    split        the splits that are read; empty reads all
    key          what names the sample of a member of a tar: its name up to the first or up to the last dot
    min_ratings  what FineVision's turns must be rated at least: `relevance`, `visual_dependency`, ...
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    split: tuple[str, ...] = ()
    key: Key = "first-dot"
    min_ratings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Shard:
    """Some files of the input. No name inside them may lead out of the folder `root`."""

    name: str
    root: Path
    files: tuple[Path, ...]
    picture_folder: Path | None = None  # the folder that names of pictures are relative to, if not `root`
    fetcher: Fetcher | None = None  # fetches pictures given by address, if the user allows it
    kind: str = ""  # which reader reads it
    source: str = ""  # the source that its documents name
    documents: Callable[[], Iterator[Any]] | None = None  # makes the documents where no file holds them
    span: Span | None = None  # the records of the file that are its own, if not all
    options: ReadOptions = field(default_factory=ReadOptions)
    sample: str = "all"  # which of its records a mixture takes
    skipped: tuple[str, ...] = ()  # why files beside it are not read, once for each

    @property
    def title(self) -> str:
        """Its name among all shards."""
        return self.name if self.span is None else f"{self.name}, from record {self.span.first + 1}"

    @property
    def picture_folders(self) -> tuple[Path, ...]:
        """The folders in which a picture that the files name is looked for, in this order."""
        if self.picture_folder is not None:
            return (self.picture_folder,)
        return tuple(dict.fromkeys((self.root / "images", self.root, *(path.parent for path in self.files[:1]))))


def file_inside(folder: Path, name: str, *, bound: Path | None = None) -> Path | None:
    """The file `name` of a folder, also as Windows or macOS writes it, and through links that the user made in it.

    None if it is missing, or if the name itself leads out of the folder `bound`, which is `folder` if none is given.
    """
    bound = Path(os.path.abspath(bound or folder))
    for written in normal_forms(name, name.replace("\\", "/")):
        try:
            path = Path(os.path.abspath(folder / written))
            if path.is_relative_to(bound):
                note_file(path)
                if path.is_file():
                    return path
        except (OSError, ValueError, RuntimeError):  # a name too long, with a zero byte, a link to itself
            continue
    return None


def normal_forms(*names: str) -> list[str]:
    """The names, then each with its accents composed (NFC) and decomposed (NFD, as macOS writes names of files)."""
    forms = [unicodedata.normalize(form, name) for form in ("NFC", "NFD") for name in names]
    return list(dict.fromkeys((*names, *forms)))


def find_files(root: Path, *endings: str) -> list[Path]:
    """The files below `root` (or `root` itself) with one of the endings, sorted; linked files and folders, too.

    A link that leads nowhere is in the list, so that it is missed when it is read; so is a folder that cannot be read.
    Hidden files, and the `._*` that macOS adds, are not. Of a cache of the Hugging Face hub, only the snapshot that its
    `main` names is read.
    """
    if root.is_file():
        return [root] if root.name.lower().endswith(endings) else []
    return sorted(path for path in _walk(root, frozenset()) if path.name.lower().endswith(endings))


def _walk(folder: Path, parents: frozenset[Path]) -> Iterator[Path]:
    """The files below a folder; a link to one of its own parents is not followed."""
    real = folder.resolve()
    if real in parents:
        return
    if os.path.isdir(folder / "blobs") and os.path.isdir(folder / "snapshots"):
        yield from _walk(hub_snapshot(folder), parents | {real})
        return
    try:
        entries = list(os.scandir(folder))
    except PermissionError:
        yield folder
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        path = folder / entry.name
        # a link comes first: asking `entry` for more is an error where it leads to itself
        if entry.is_symlink() and not os.path.exists(path):
            yield path
        elif entry.is_dir() and not _is_ours(path):
            yield from _walk(path, parents | {real})
        elif entry.is_file():
            yield path


def _is_ours(folder: Path) -> bool:
    """Whether `mm1 prepare` made a folder that lies inside its input: a store, a result, its work, what it fetched."""
    if folder.name.endswith((".lance", ".fetched")):
        return True
    is_result = folder.name.endswith(".part") or os.path.isfile(folder / "card.json")
    return is_result and os.path.isfile(folder / "request.json")


def hub_snapshot(folder: Path) -> Path:
    """The snapshot of a repository in the Hugging Face hub's cache that its `main` names, or else the newest.

    https://huggingface.co/docs/huggingface_hub/guides/manage-cache

    Raises:
        InputError: there is none.
    """
    main = folder / "refs" / "main"
    named = folder / "snapshots" / main.read_text(encoding="utf-8").strip() if main.is_file() else None
    if named is not None and named.is_dir():
        return named
    snapshots = sorted((folder / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime)
    if not snapshots:
        raise InputError(f"{folder} is a cache of the Hugging Face hub without a snapshot; download it again")
    return snapshots[-1]


def shard_per_file(root: Path, *endings: str, pictures: Path | None = None) -> list[Shard]:
    """One shard for each file with one of the endings."""
    folder = root if root.is_dir() else root.parent
    return [Shard(p.relative_to(folder).as_posix(), folder, (p,), pictures) for p in find_files(root, *endings)]

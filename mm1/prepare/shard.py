"""A shard of the input: files that are read together, and kept or lost together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm1.prepare.fetch import Fetcher
from mm1.prepare.watch import note_file


class InputError(ValueError):
    """Input that cannot be read as its kind; the message says which, what was expected, what to change."""


@dataclass(frozen=True, slots=True)
class Span:
    """Some records of a file: [start, stop) in bytes of JSON, in rows of tables; `first` is the number of the first."""

    start: int
    stop: int
    first: int


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

    @property
    def title(self) -> str:
        """Its name among all shards."""
        return self.name if self.span is None else f"{self.name}, from record {self.span.first + 1}"

    @property
    def picture_folders(self) -> tuple[Path, ...]:
        """The folders in which a picture that the files name is looked for, in this order."""
        return (self.root / "images", self.root) if self.picture_folder is None else (self.picture_folder,)


def file_inside(folder: Path, name: str) -> Path | None:
    """The file `name` of a folder; None if it is missing or lies elsewhere (`../x`, an absolute name, a link)."""
    note_file(folder / name)
    try:
        path = folder.joinpath(name).resolve()
        return path if path.is_relative_to(folder.resolve()) and path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # a name too long, with a zero byte, a link to itself
        return None


def find_files(root: Path, *endings: str) -> list[Path]:
    """The files below `root` (or `root` itself) with one of the endings, sorted; links that lead out are left out."""
    if root.is_file():
        return [root] if root.name.lower().endswith(endings) else []
    paths = (path for path in sorted(root.rglob("*")) if path.name.lower().endswith(endings))
    return [path for path in paths if file_inside(root, path.relative_to(root).as_posix())]


def shard_per_file(root: Path, *endings: str, pictures: Path | None = None) -> list[Shard]:
    """One shard for each file with one of the endings."""
    folder = root if root.is_dir() else root.parent
    return [Shard(p.relative_to(folder).as_posix(), folder, (p,), pictures) for p in find_files(root, *endings)]

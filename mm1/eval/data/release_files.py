"""What the readers of first releases share: which files they look for, and rows that name a key that they lack."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm1.eval.data.rows import OddRow, Rows, TaskError, read_json

_PARTS = {"validation": "val2014", "train": "train2014", "testdev": "test-dev2015", "test": "test2015"}


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads one split of a release. In the names of `files`, without which there is none, `filled` puts the split."""

    files: tuple[str, ...]
    read: Callable[[Path, str], Rows | None]

    def __call__(self, folder: Path, split: str) -> Rows | None:
        """The rows of the split; None if its files are not in the folder."""
        return self.read(folder, split)


def reader_of(*files: str) -> Callable[[Callable[[Path, str], Rows | None]], Reader]:
    """A decorator that makes a `Reader` of these files out of a function."""
    return lambda read: Reader(files, read)


class MissingKey(OddRow):
    """A row lacks a key that its reader needs."""

    def __init__(self, where: str, key: str, row: Mapping[str, Any]):
        super().__init__(f"{where} has no {key!r}; found {', '.join(row) or 'nothing'}", name="a missing column")


class ReleaseRow(dict[str, Any]):
    """A row of a file. `where` names file and row; a key that it lacks raises `MissingKey`."""

    __slots__ = ("where",)

    def __init__(self, row: Mapping[str, Any], where: str):
        super().__init__(row)
        self.where = where

    def __missing__(self, key: str) -> Any:
        raise MissingKey(self.where, key, self)

    def __or__(self, other: Any) -> "ReleaseRow":  # type: ignore[override]
        return ReleaseRow({**self, **other}, self.where)


def filled(name: str, split: str) -> str:
    """The name of a file with the split in it: {split}, {short} (val for validation), {part} (val2014, as in COCO)."""
    short = {"validation": "val"}.get(split, split)
    return name.format(split=split, short=short, part=_PARTS.get(split, split))


def find(folder: Path, name: str) -> Path | None:
    """The file of this name in the folder or in one of its subfolders."""
    paths = [*sorted(folder.glob(name)), *sorted(folder.glob(f"*/{name}"))]
    return paths[0] if paths else None


def subfolders(folder: Path) -> Iterator[Path]:
    """The folders in a folder, in the order of their names, without hidden ones."""
    return iter(sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))


def needed(path: Path) -> Path:
    """The path of a file that must be there."""
    if not path.is_file():
        raise TaskError(f"{path} is missing")
    return path


def listed_rows(path: Path, key: str, *, optional: bool = False) -> list[ReleaseRow]:
    """The rows of a JSON file that holds a list of them, under `key` if that is given; none without an optional key."""
    whole = read_json(path)
    if optional and isinstance(whole, dict) and key not in whole:
        return []
    rows = whole.get(key) if key and isinstance(whole, dict) else whole
    return _as_rows(rows, str(path), key)


def inner_rows(row: ReleaseRow, key: str) -> list[ReleaseRow]:
    """The rows in a row."""
    return _as_rows(row[key], row.where, key)


def _as_rows(rows: Any, where: str, key: str) -> list[ReleaseRow]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        under = f" under {key!r}" if key else ""
        raise TaskError(f"{where} must hold a list of rows{under}; found {type(rows).__name__}")
    of = f" of {key!r}" if key else ""
    return [ReleaseRow(row, f"{where}, row {number}{of}") for number, row in enumerate(rows)]


def mapped_rows(path: Path) -> dict[str, ReleaseRow]:
    """The rows of a JSON file that maps ids to them."""
    rows = read_json(path)
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise TaskError(f"{path} must map ids to rows; found {type(rows).__name__}")
    return {name: ReleaseRow(row, f"{path}, row {name!r}") for name, row in rows.items()}


def picture_path(folder: Path, subfolders: Sequence[str], name: str) -> Path:
    """The path of an image: in one of the subfolders, in `images`, or beside the file. `take` reports missing ones.

    A subfolder may hold its images flat, whatever folder the name has (DocVQA).
    """
    candidates = [folder / subfolder / name for subfolder in (*subfolders, "images", "")]
    candidates += [folder / "images" / subfolder / name for subfolder in subfolders]
    candidates += [folder.parent / subfolder / name for subfolder in subfolders]
    if "/" in name:
        flat = name.rpartition("/")[2]
        candidates += [parent / subfolder / flat for parent in (folder, folder.parent) for subfolder in subfolders]
    return next((path for path in candidates if path.is_file()), candidates[0])

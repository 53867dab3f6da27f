"""Rows of a published data set, read by position: parquet as on the hub, or JSON with folders of images.

A row is a dict with the published column names. Every fault is an error that names file and row: `OddRow` for one row
that can't be scored, `TaskError` for a whole file.
"""

import bisect
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from mm1.data.image import ImageError, load
from mm1.document import Image

Row = dict[str, Any]


class TaskError(ValueError):
    """A file of a benchmark can't be scored; the message says which file or row, what it has and what is expected."""


class OddRow(TaskError):
    """One row can't be scored. `name` is the short name that such rows are counted under."""

    def __init__(self, message: str, *, name: str):
        super().__init__(message)
        self.name = name


_HALF = re.compile(r"\\\\|\\u[dD][89abAB]\w{2}\\u[dD][c-fC-F]\w{2}|\\u[dD][89a-fA-F]\w{2}")
"""An escaped backslash, two halves, which are one character, or in 6 letters a half alone."""


class Rows(Protocol):
    """One split. `light` iterates over all rows without their images; `take` returns whole rows by position."""

    @property
    def name(self) -> str: ...

    @property
    def count(self) -> int: ...

    def light(self) -> Iterator[Row]: ...

    def take(self, positions: Sequence[int]) -> list[Row]: ...


@dataclass(frozen=True, slots=True)
class ListedRows:
    """Rows in memory. The columns in `pictures` hold paths, which `take` replaces by the bytes of files that exist."""

    name: str
    rows: list[Row]
    pictures: tuple[str, ...] = ("image",)

    @property
    def count(self) -> int:
        return len(self.rows)

    def light(self) -> Iterator[Row]:
        return ({key: value for key, value in row.items() if key not in self.pictures} for row in self.rows)

    def take(self, positions: Sequence[int]) -> list[Row]:
        return [self._whole(self.rows[position]) for position in positions]

    def _whole(self, row: Row) -> Row:
        paths = {key: row[key] for key in self.pictures if isinstance(row.get(key), Path)}
        return row | {key: path.read_bytes() for key, path in paths.items() if path.is_file()}


class ParquetRows:
    """Rows of the parquet files of one split, in the order of their names. Only the row groups needed are read."""

    def __init__(self, files: Sequence[Path], *, name: str):
        self.name = name
        self._files: list[pq.ParquetFile] = []
        self._groups: list[tuple[int, int]] = []
        sizes = []
        for path in files:
            try:
                opened = pq.ParquetFile(path)
            except (pa.ArrowInvalid, OSError) as error:
                raise TaskError(f"{path} is no whole parquet file ({error}); fetch it again") from error
            for group in range(opened.num_row_groups):
                self._groups.append((len(self._files), group))
                sizes.append(opened.metadata.row_group(group).num_rows)
            self._files.append(opened)
        self._ends = list(accumulate(sizes))
        self.count = self._ends[-1] if self._ends else 0

    def light(self) -> Iterator[Row]:
        for opened in self._files:
            columns = [field.name for field in opened.schema_arrow if not _holds_bytes(field.type)]
            for batch in opened.iter_batches(columns=columns):
                yield from batch.to_pylist()

    def take(self, positions: Sequence[int]) -> list[Row]:
        rows: dict[int, Row] = {}
        by_group: dict[int, list[int]] = {}
        for position in positions:
            by_group.setdefault(bisect.bisect_right(self._ends, position), []).append(position)
        for group, in_group in by_group.items():
            file, number = self._groups[group]
            start = self._ends[group - 1] if group else 0
            table = self._files[file].read_row_group(number).take([position - start for position in in_group])
            rows |= dict(zip(in_group, table.to_pylist(), strict=True))
        return [rows[position] for position in positions]


@dataclass(frozen=True, slots=True)
class SomeRows:
    """The rows at `positions` of other rows."""

    name: str
    rows: Rows
    positions: list[int]

    @property
    def count(self) -> int:
        return len(self.positions)

    def light(self) -> Iterator[Row]:
        kept = set(self.positions)
        return (row for position, row in enumerate(self.rows.light()) if position in kept)

    def take(self, positions: Sequence[int]) -> list[Row]:
        return self.rows.take([self.positions[position] for position in positions])


@dataclass(frozen=True, slots=True)
class JoinedRows:
    """Questions with their images in a separate table; a question's `key` is the `id` of an image.

    `positions` maps ids to rows of that table.
    """

    rows: Rows
    pictures: Rows
    key: str
    positions: dict[str, int]

    @property
    def name(self) -> str:
        return self.rows.name

    @property
    def count(self) -> int:
        return self.rows.count

    def light(self) -> Iterator[Row]:
        return self.rows.light()

    def take(self, positions: Sequence[int]) -> list[Row]:
        rows = self.rows.take(positions)
        needed = [row[self.key] for row in rows if row.get(self.key) in self.positions]
        images = self.pictures.take([self.positions[name] for name in needed])
        by_name = {name: image["image"] for name, image in zip(needed, images, strict=True)}
        return [{**row, "image": by_name.get(row.get(self.key))} for row in rows]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    if pa.types.is_struct(kind):
        return any(_holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _holds_bytes(kind.value_type)


def parquet_rows(folder: Path, split: str, *, config: str = "") -> Rows | None:
    """The rows of a split in a folder of the hub: `data/SPLIT-*.parquet` or `CONFIG/SPLIT-*.parquet`; None without."""
    for parent in ([folder / config] if config else []) + [folder / "data", folder]:
        files = sorted(path for path in parent.glob(f"{split}*.parquet") if _split_of(path) == split)
        if files:
            return ParquetRows(files, name=f"{split} of {parent}")
    return None


def json_rows(folder: Path, split: str) -> Rows | None:
    """The rows of `FOLDER/SPLIT.jsonl` or `.json`, in which `image` is a path relative to the folder; None without."""
    for path in (folder / f"{split}.jsonl", folder / f"{split}.json"):
        if path.is_file():
            rows = read_json(path)
            if not isinstance(rows, list):
                raise TaskError(f"{path} holds a {type(rows).__name__}; a list of rows is expected")
            with_paths = [{**row, "image": folder / str(row["image"])} if row.get("image") else row for row in rows]
            return ListedRows(str(path), with_paths)
    return None


def splits(folder: Path) -> list[str]:
    """The splits of the parquet files in the folder, its `data` or the folders of its configurations."""
    return sorted({_split_of(path) for pattern in ("*.parquet", "*/*.parquet") for path in folder.glob(pattern)})


def _split_of(path: Path) -> str:
    return path.stem.partition("-0")[0]


def read_json(path: Path) -> Any:
    """The content of a JSON file; for JSON lines, whatever the file's name, the list of all lines.

    Raises:
        TaskError: a line is no JSON.
    """
    text = path.read_text(encoding="utf-8-sig")
    if "\\ud" in text or "\\uD" in text:  # JSON can name halves of characters, which no other text can hold
        text = _HALF.sub(lambda match: r"\ufffd" if len(match[0]) == 6 else match[0], text)
    try:
        return json.loads(text)
    except ValueError as whole:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2:
            raise TaskError(f"{path} is no JSON ({whole})") from whole
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                records.append(json.loads(line))
            except ValueError as error:
                raise TaskError(f"{path}, line {number}, is no JSON ({error})") from error
        return records


def picture(value: Any, *, where: str) -> Image:
    """The image in a value of a column: the hub's {bytes, path}, or bytes.

    Raises:
        OddRow: there is no image, or it can't be decoded.
    """
    if isinstance(value, Path):
        raise OddRow(f"{where}: the picture {value} is missing", name="no picture")
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes) or not data:
        what = "nothing" if not data else type(data).__name__
        raise OddRow(f"{where} has no picture: found {what}", name="no picture")
    try:
        load(data, 32)
    except ImageError as error:
        raise OddRow(f"{where} has a picture that cannot be read: {error}", name="unreadable picture") from error
    return Image(data)

"""How benchmarks are laid out: parquet as on the hub, JSON and pictures as in first releases."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from conftest import picture

Rows = list[dict[str, Any]]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def cell(number: int) -> dict[str, Any]:
    """A picture as the hub stores it."""
    return {"bytes": picture(11, number)[0], "path": None}


def parquet(path: Path, rows: Rows, *, images: tuple[str, ...] = ("image",)) -> None:
    """Write `rows`, in row groups of three so that a read crosses their borders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    for name in images:
        kind = pa.list_(IMAGE) if isinstance(rows[0][name], list) else IMAGE
        column = pa.array([row[name] for row in rows], kind)
        table = table.set_column(table.schema.get_field_index(name), name, column)
    pq.write_table(table, path, row_group_size=3)


def data(folder: Path, split: str, rows: Rows, **more: Any) -> None:
    parquet(folder / "data" / f"{split}-00000-of-00001.parquet", rows, **more)


def jpg(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(11, number)[0])


def write(path: Path, content: Any, *, lines: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content) if lines else json.dumps(content))


def six(make: Callable[[int], dict[str, Any]], *, start: int = 0, count: int = 6) -> Rows:
    return [make(number) for number in range(start, start + count)]


def ten_answers(number: int) -> Rows:
    """The answers of ten people; seven are red."""
    texts = ["red"] * 7 + ["blue", "dark red", str(number)]
    return [{"answer": text, "answer_confidence": "yes", "answer_id": rank} for rank, text in enumerate(texts, 1)]

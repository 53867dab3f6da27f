"""Reads rows written as text: JSON lines or arrays, CSV, TSV, and the metadata of an `imagefolder`."""

import csv
import io
import itertools
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm1.document import Document
from mm1.prepare.bounded_read import LARGEST_FILE, open_unpacked, unpacked_name
from mm1.prepare.json_arrays import read_json_array
from mm1.prepare.ledger import Ledger
from mm1.prepare.readers.folders import PICTURE_ENDINGS
from mm1.prepare.readers.tables import batches_of, read_parquet, table_documents
from mm1.prepare.shard import InputError, Shard, find_files

NAMES_OF_FILES = ("file_name", "file_names")
"""How the columns end that name the pictures of an `imagefolder`."""


def read_rows(shard: Shard, ledger: Ledger) -> Iterator[Document]:
    """One document per row and caption, in any layout of tables; pictures are named relative to the file, too.

    Raises:
        InputError: broken, or without the columns of any layout.
    """
    path = shard.files[0]
    name = unpacked_name(path)
    if name.endswith(".parquet"):
        yield from read_parquet(shard, ledger)
    elif name.endswith((".csv", ".tsv")):
        yield from table_documents(batches_of(_csv_rows(path)), None, shard=shard, ledger=ledger)
    else:
        rows = (row for _, row in read_json_array(shard, ledger))
        yield from table_documents(batches_of(rows), None, shard=shard, ledger=ledger)


def read_imagefolder(shard: Shard, ledger: Ledger) -> Iterator[Document]:
    """`read_rows` of the metadata of an `imagefolder` of `datasets`; pictures that it doesn't name are counted.

    https://huggingface.co/docs/datasets/image_dataset#imagefolder

    Raises:
        InputError: as `read_rows`.
    """
    yield from read_rows(shard, ledger)
    folder, named = shard.files[0].parent, _named_pictures(shard)
    for path in find_files(folder, *PICTURE_ENDINGS):
        if unicodedata.normalize("NFC", path.relative_to(folder).as_posix()) not in named:
            ledger.skipped["picture that the metadata doesn't name"] += 1


def _named_pictures(shard: Shard) -> set[str]:
    """The names in the columns `file_name`, `file_names`, `left_file_name`, ... of the metadata of an `imagefolder`."""
    import pyarrow.parquet as pq

    path = shard.files[0]
    rows: Iterator[dict[str, Any]]
    if path.name.lower().endswith(".parquet"):
        columns = [name for name in pq.read_schema(path).names if name.endswith(NAMES_OF_FILES)]
        rows = iter(pq.read_table(path, columns=columns).to_pylist())
    elif path.name.lower().endswith(".csv"):
        rows = _csv_rows(path)
    else:
        rows = (row for _, row in read_json_array(shard, Ledger()))
    cells = (cell for row in rows for name, cell in row.items() if name.endswith(NAMES_OF_FILES))
    names = (name for cell in cells for name in (cell if isinstance(cell, list) else [cell]))
    return {unicodedata.normalize("NFC", os.path.normpath(name)) for name in names if isinstance(name, str)}


def csv_columns(path: Path) -> list[str]:
    """The names of the columns of a CSV or TSV file; a file of addresses and captions without them is known by that."""
    return list(next(_csv_rows(path, at_least=1), {}))


def _csv_rows(path: Path, *, at_least: int = 0) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(LARGEST_FILE)
    try:
        with (
            open_unpacked(path) as binary,
            io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="") as file,
        ):
            lines = _csv_lines(file, is_tsv=unpacked_name(path).endswith(".tsv"))
            names = [name.strip() for name in next(lines, [])]
            if any("://" in name for name in names):  # Conceptual Captions has no header
                lines = itertools.chain([names], lines)
                names = ["url" if "://" in name else f"caption_{n}" for n, name in enumerate(names)]
            if at_least and names:
                yield dict.fromkeys(names)
                return
            for line in lines:
                if line:
                    yield dict(zip(names, line, strict=False))
    except (csv.Error, UnicodeError) as error:
        raise InputError(f"{path.name} is no readable CSV file: {error}") from error


def _csv_lines(file: io.TextIOWrapper, *, is_tsv: bool) -> Iterator[list[str]]:
    """The lines of a table. In a `.csv` without a comma in its header, other signs part the cells: Excel writes `;`."""
    lines = _bounded_lines(file)
    header = next(lines, "")
    delimiter = "\t" if is_tsv else "," if "," in header else max(",;\t|", key=header.count)
    return csv.reader(itertools.chain([header], lines), delimiter=delimiter, skipinitialspace=delimiter in ";|")


def _bounded_lines(file: io.TextIOWrapper) -> Iterator[str]:
    while line := file.readline(LARGEST_FILE):
        if len(line) == LARGEST_FILE:
            raise csv.Error(f"a line of more than {LARGEST_FILE >> 20} MB")
        yield line

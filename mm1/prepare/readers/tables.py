"""Reads tables: parquet files and data sets that `datasets` saved, in any of the layouts of `table_layouts.py`."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import accumulate, islice
from typing import Any

from mm1.document import Document
from mm1.prepare.ledger import Dropped, Ledger
from mm1.prepare.readers.pictures import Pictures
from mm1.prepare.readers.table_layouts import ADDRESS_COLUMNS, Row, TableLayout, renamed, table_layout
from mm1.prepare.shard import InputError, Shard, Span

_METADATA = ("license", "licence", "url", "language", "date", "dump")
_ROWS_IN_MEMORY = 16


def read_parquet(shard: Shard, ledger: Ledger) -> Iterator[Document]:
    """One document per row of a parquet file in any of the known layouts.

    Raises:
        InputError: broken, or without the columns of any layout.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = shard.files[0]
    try:
        with pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
            columns = file.schema_arrow.names
            groups, skipped = _row_groups(file, shard.span)
            batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=_ROWS_IN_MEMORY, row_groups=groups))
            rows = _cut(batches, shard.span, skipped)
            yield from table_documents(rows, columns, shard=shard, ledger=ledger)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise InputError(f"{path.name} is no readable parquet file: {error}") from error


def read_dataset(shard: Shard, ledger: Ledger) -> Iterator[Document]:
    """One document per row of a data set that `datasets` saved to disk, in any of the known layouts.

    Its Arrow files are read directly, so that pictures stay undecoded.

    Raises:
        InputError: broken, or without the columns of any layout.
    """
    import pyarrow as pa

    path = shard.files[0]
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
            starts = ((batch, start) for batch in stream for start in range(0, batch.num_rows, _ROWS_IN_MEMORY))
            batches = (batch.slice(start, _ROWS_IN_MEMORY).to_pylist() for batch, start in starts)
            yield from table_documents(_cut(batches, shard.span, 0), stream.schema.names, shard=shard, ledger=ledger)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path.name} is no Arrow file of a saved data set: {error}") from error


def _row_groups(file: Any, span: Span | None) -> tuple[list[int], int]:
    """The row groups of a parquet file that hold rows of the span, and the number of rows before them."""
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    ends = list(accumulate(sizes))
    if span is None:
        return list(range(len(sizes))), 0
    groups = [group for group, end in enumerate(ends) if end > span.start and end - sizes[group] < span.stop]
    return groups, ends[groups[0]] - sizes[groups[0]] if groups else 0


def _cut(batches: Iterable[list[Row]], span: Span | None, at: int) -> Iterator[list[Row]]:
    """The rows of the span; `at` is the number of the first row of all batches."""
    for rows in batches:
        if span is not None and at >= span.stop:
            return
        kept = rows if span is None else rows[max(0, span.start - at) : max(0, span.stop - at)]
        at += len(rows)
        if kept:
            yield kept


def table_documents(
    batches: Iterable[list[Row]], columns: list[str] | None, *, shard: Shard, ledger: Ledger
) -> Iterator[Document]:
    """One document per row and caption, in the layout that the columns' names show; None: those of the first rows.

    Raises:
        InputError: no known layout has these columns.
    """
    options, pictures = shard.options, Pictures(shard)
    layout: TableLayout | None = None
    rows_read = shard.span.first if shard.span else 0
    for rows in batches:
        if layout is None:
            names = columns or list(dict.fromkeys(name for row in rows for name in row))
            layout = table_layout(names, shard.name, options=options, some=rows)
            if options.split and "split" not in names:
                raise InputError(
                    f"{shard.name} has no split {', '.join(options.split)}: no file and no column names it"
                )
        rows = renamed(rows, options.columns)
        pictures.prefetch(_addresses(rows))
        for number, row in enumerate(rows, start=rows_read):
            of_row = layout.of_row(row)
            parts = of_row.parts(row)
            for index, part in enumerate(parts):
                position = f"row {number}" + (f", caption {index + 1}" if len(parts) > 1 else "")
                with ledger.record(position, part) as record:
                    document = of_row.to_document(part, pictures, record)
                    if options.split and row.get("split") not in options.split:
                        raise Dropped("record of another split", expected=True, detail=str(row.get("split")))
                    metadata = {key: str(row[key]) for key in _METADATA if row.get(key)} | document.metadata
                    document_id = f"{shard.name}/{number}" + (f"/{index}" if len(parts) > 1 else "")
                    yield replace(document, id=document_id, metadata=metadata)
        rows_read += len(rows)


def batches_of(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Rows that come one by one, as `table_documents` takes them."""
    while batch := list(islice(rows, _ROWS_IN_MEMORY)):
        yield batch


def _addresses(rows: list[Row]) -> list[Any]:
    """The cells of some rows that may hold addresses of pictures."""
    cells: list[Any] = []
    for row in rows:
        cells += [row.get(name) for name in ADDRESS_COLUMNS] if "texts" not in row else []
        images = row.get("images")
        cells += images if isinstance(images, list) else []
    return cells

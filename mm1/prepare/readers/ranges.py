"""Cuts shards of one large file into shards of ranges of its records: a stop or a fault costs a range alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from mm1.prepare.bounded_read import text_encoding
from mm1.prepare.json_arrays import array_spans
from mm1.prepare.shard import Shard, Span

RECORDS = 250
"""Records of a range of JSON whose pictures are files of their own: they take as long as a tar of pictures."""

SIZE = 64 * 2**20
"""Bytes of a range."""

_BLOCK = 2**24


def cut(shard: Shard) -> list[Shard]:
    """The shard, or several of the ranges of its file, in order."""
    if shard.kind not in _SPANS or len(shard.files) != 1:
        return [shard]
    try:
        spans = _SPANS[shard.kind](shard.files[0]) if shard.files[0].is_file() else []
    except OSError:
        return [shard]  # its reader says what is wrong
    if len(spans) < 2:
        return [shard]
    return [replace(shard, span=span, skipped=() if number else shard.skipped) for number, span in enumerate(spans)]


def _json(path: Path) -> list[Span]:
    return array_spans(path, records=RECORDS, size=SIZE) or _lines(path, records=RECORDS)


def _text(path: Path) -> list[Span]:
    is_lines = ".json" in path.name.lower() or path.name.lower().endswith(".ndjson")
    return array_spans(path, records=2**40, size=SIZE) or _lines(path, records=2**40) if is_lines else []


def _lines(path: Path, *, records: int) -> list[Span]:
    """A file of lines cut after so many of them or so many bytes; a compressed one is not cut."""
    if path.suffix.lower() not in (".jsonl", ".json", ".ndjson") or text_encoding(path.open("rb").read(4)):
        return []
    spans: list[Span] = []
    start = first = count = at = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            ends = at + 1 + np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
            for index in _ends_of_ranges(ends, start=start, missing=records - (count - first), records=records):
                spans.append(Span(start, int(ends[index]), first))
                start, first = int(ends[index]), count + index + 1
            count += len(ends)
            at += len(block)
    return [*spans, Span(start, at, first)] if start < at else spans


def _ends_of_ranges(ends: np.ndarray, *, start: int, missing: int, records: int) -> list[int]:
    """The lines, by their number in `ends`, after which a range ends; `missing` are those of the range that is open."""
    lines: list[int] = []
    index = -1
    while True:
        by_records, by_size = index + missing, int(np.searchsorted(ends, start + SIZE))
        index = min(by_records, by_size)
        if index >= len(ends):
            return lines
        lines.append(index)
        start, missing = int(ends[index]), records


def _parquet(path: Path) -> list[Span]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_metadata(path).num_rows
    except pa.ArrowInvalid:
        return []
    return _rows(rows, path.stat().st_size)


def _arrow(path: Path) -> list[Span]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
            rows = sum(batch.num_rows for batch in stream)
    except pa.ArrowInvalid:
        return []
    return _rows(rows, path.stat().st_size)


def _rows(rows: int, size: int) -> list[Span]:
    """Ranges of the same number of rows and about `SIZE` bytes."""
    each = max(1, rows * SIZE // max(1, size))
    return [Span(start, min(start + each, rows), start) for start in range(0, rows, each)]


_SPANS: dict[str, Callable[[Path], list[Span]]] = {
    "llava": _json,
    "mmc4": lambda path: _lines(path, records=RECORDS),
    "text": _text,
    "parquet": _parquet,
    "dataset": _arrow,
}

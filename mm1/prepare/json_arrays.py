"""JSON arrays of any size, element by element: only one is in memory, and a malformed one costs itself.

The elements are found by the brackets and commas outside of strings, a block of bytes at a time, so that a large file
can be cut into ranges before it is read.
"""

import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mm1.prepare.bounded_read import LARGEST_FILE, open_unpacked, parse_json, read_json_lines
from mm1.prepare.ledger import Dropped, Ledger
from mm1.prepare.shard import InputError, Shard, Span

_BLOCK = 2**22
_QUOTE, _BACKSLASH, _COMMA = b'"\\,'
_DEPTHS = np.zeros(256, np.int8)
_DEPTHS[list(b"[{")], _DEPTHS[list(b"]}")] = 1, -1
_STRUCTURE = np.zeros(256, np.bool_)
_STRUCTURE[list(b"[]{},")] = True


def read_json_array(shard: Shard, ledger: Ledger) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 0, object) of the shard's file; the rest is as for `read_named`."""
    return ((number, value) for number, _, value in read_named(shard, ledger))


def read_named(shard: Shard, ledger: Ledger) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(number from 0, position, object) of the shard's file, which is one JSON array; a file of JSON lines works too.

    The position is what a person is told: elements of an array count from 0, as `mm1 show --row` does, lines from 1.
    An element that is no object is a record that is left out.

    Raises:
        InputError: the array breaks off, or goes on after its end.
    """
    path = shard.files[0]
    with open_unpacked(path) as file:
        start = array_start(file)
    if start is None:
        if _is_one_object(path):
            ledger.skipped["file with one JSON object over several lines, in place of records"] += 1
            return
        for number, entry in read_json_lines(shard, ledger):
            yield number, f"line {number + 1}", entry
        return
    with open_unpacked(path) as file:
        if shard.span is None:
            file.read(start)
        else:
            file.seek(shard.span.start)
        number = shard.span.first if shard.span else 0
        for element in _elements(file, path, shard.span or Span(start, sys.maxsize, 0)):
            value, position = parse_json(element) if element is not None else None, f"element {number}"
            if isinstance(value, dict):
                yield number, position, value
            else:
                with ledger.record(position, element or ""):
                    if element is None:
                        raise Dropped(f"element of more than {LARGEST_FILE >> 20} MB")
                    raise Dropped("element that is no JSON object", detail=_fault(element))
            number += 1


def _is_one_object(path: Path) -> bool:
    """Whether a file has one object, as those that describe a data set have."""
    with open_unpacked(path) as file:
        return file.readline(LARGEST_FILE).removeprefix(b"\xef\xbb\xbf").strip() == b"{"


def array_start(file: BinaryIO | io.BufferedReader) -> int | None:
    """Where the first element of a JSON array may start; None if the file is none."""
    head = file.read(_BLOCK)
    rest = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return len(head) - len(rest) + 1 if rest.startswith(b"[") else None


def array_spans(path: Path, *, records: int, size: int) -> list[Span]:
    """The array cut into ranges of so many records or bytes, whichever is reached first; none if the file is none.

    What is wrong with its end is left to who reads the last range.
    """
    with path.open("rb") as file:
        start = array_start(file)
        if start is None:
            return []
        spans, first = [], 0
        file.seek(start)
        for count, (separator, is_end) in enumerate(_separators(file), start=1):
            if (count - first >= records or separator - start >= size) and not is_end:
                spans.append(Span(start, separator, first))
                start, first = separator, count
    return [*spans, Span(start, path.stat().st_size, first)]


@dataclass(slots=True)
class _State:
    """Where a scan of an array stands: in how many brackets, and whether in a string."""

    depth: int = 1
    in_string: bool = False


def _separators(file: BinaryIO) -> Iterator[tuple[int, bool]]:
    """(position after it, whether it is the closing bracket) of each separator of the array that the file is in."""
    state, at = _State(), file.tell()
    while block := _whole_block(file):
        for separator, is_end in _scan(block, state):
            yield at + separator + 1, is_end
            if is_end:
                return
        at += len(block)


def _whole_block(file: BinaryIO | io.BufferedReader) -> bytes:
    """The next block, which never ends between a backslash and what it escapes."""
    block = file.read(_BLOCK)
    while block.endswith(b"\\") and (more := file.read(2**16)):
        block += more
    return block


def _scan(block: bytes, state: _State) -> Iterator[tuple[int, bool]]:
    """(position, whether it is the closing bracket) of the separators in a block; `state` is then that of its end."""
    values = np.frombuffer(block, np.uint8)
    quotes = np.flatnonzero(values == _QUOTE)
    preceded = (quotes > 0) & (values[quotes - 1] == _BACKSLASH)
    if preceded.any():
        escaped = [index for index in np.flatnonzero(preceded) if _is_escaped(block, int(quotes[index]))]
        quotes = np.delete(quotes, escaped)
    structure = np.flatnonzero(_STRUCTURE[values])
    outside = (np.searchsorted(quotes, structure) + state.in_string) % 2 == 0
    structure = structure[outside]
    depths = state.depth + np.cumsum(_DEPTHS[values[structure]], dtype=np.int64)
    state.in_string ^= len(quotes) % 2 == 1
    if len(depths):
        state.depth = int(depths[-1])
    ends = np.flatnonzero(depths <= 0)
    last = ends[0] if len(ends) else len(structure)
    commas = np.flatnonzero((values[structure[:last]] == _COMMA) & (depths[:last] == 1))
    for index in commas:
        yield int(structure[index]), False
    if len(ends):
        yield int(structure[last]), True


def _is_escaped(block: bytes, quote: int) -> bool:
    at = quote - 1
    while at >= 0 and block[at] == _BACKSLASH:
        at -= 1
    return (quote - 1 - at) % 2 == 1


def _elements(file: io.BufferedReader, path: Path, span: Span) -> Iterator[bytes | None]:
    """The bytes of each element of a range of an array, at whose start the file stands; None for one that is too large.

    Raises:
        InputError: the array breaks off, or goes on after its end.
    """
    state, at, element, length = _State(), span.start, bytearray(), 0
    while at < span.stop and (block := _whole_block(file)[: span.stop - at]):
        begin = 0
        for separator, is_end in _scan(block, state):
            element += block[begin:separator]
            length += separator - begin
            if element.strip():
                yield bytes(element) if length < LARGEST_FILE else None
            element, length, begin = bytearray(), 0, separator + 1
            if is_end:
                if (block[begin:] + file.read(1000)).strip():
                    raise InputError(f"{path.name} goes on after the end of its JSON array")
                return
        length += len(block) - begin
        element += block[begin:] if length < LARGEST_FILE else b""
        at += len(block)
    is_last = at < span.stop or at >= path.stat().st_size
    if state.depth != 1 or state.in_string or element.strip() or is_last:
        raise InputError(f"{path.name} is no JSON array of objects, or breaks off")


def _fault(element: bytes) -> str:
    try:
        json.loads(element)
    except (ValueError, RecursionError) as error:
        return str(error)
    return ""

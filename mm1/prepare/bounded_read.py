"""Bytes, lines and JSON out of files that strangers wrote: every size is bounded before anything is read.

What is too large or malformed is left out and counted in `drops`; no name leads out of its folder.
"""

import bz2
import gzip
import io
import json
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mm1.prepare.shard import InputError, Shard, file_inside

LARGEST_FILE = 64 * 2**20
"""Bytes of the largest picture, page or line that is read: a larger one is left out unread and counted."""

LARGEST_INDEX = 2 * 2**30
"""Bytes of the largest file that has to be read whole before its first document (COCO captions)."""

_SEPARATORS = re.compile(r"[,\s]*")


def read_picture(shard: Shard, name: str, drops: Counter[str]) -> bytes | None:
    """The bytes of a picture that a file of the shard names; None, counted, if it cannot be read."""
    for folder in shard.picture_folders:
        path = file_inside(folder, name)
        if path is not None:
            return read_file(path, drops)
    leads_out = os.path.isabs(name) or ".." in Path(name).parts
    drops["picture whose name leads out of its folder" if leads_out else "picture that is missing"] += 1
    return None


def read_file(path: Path, drops: Counter[str]) -> bytes | None:
    """The bytes of a file; None, counted, if it is larger than `LARGEST_FILE`."""
    if path.stat().st_size > LARGEST_FILE:
        drops[f"file of more than {LARGEST_FILE >> 20} MB"] += 1
        return None
    return path.read_bytes()


def read_lines(path: Path, drops: Counter[str]) -> Iterator[bytes]:
    """The lines of a text file, decompressed (.gz, .zst, .bz2, .zip) as it is read; overlong lines are counted.

    Raises:
        InputError: the compressed file is broken.
    """
    try:
        with _open_decompressed(path) as file:
            while line := file.readline(LARGEST_FILE):
                if len(line) < LARGEST_FILE:
                    yield line
                    continue
                drops[f"line of more than {LARGEST_FILE >> 20} MB"] += 1
                while line and not line.endswith(b"\n"):
                    line = file.readline(LARGEST_FILE)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path.name} breaks off or is no {path.suffix} file: {error}") from error


def _open_decompressed(path: Path) -> BinaryIO | io.BufferedReader:
    import pyarrow as pa

    ending = path.suffix.lower()
    if ending == ".gz":
        return io.BufferedReader(gzip.open(path))
    if ending == ".bz2":
        return io.BufferedReader(bz2.open(path))
    if ending in (".zst", ".zstd"):  # Arrow's reader notices a frame that is cut off
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    if ending == ".zip":
        archive = zipfile.ZipFile(path)
        names = archive.namelist()
        if len(names) != 1:
            raise InputError(f"{path.name} holds {len(names)} files; a packed text file holds one")
        return io.BufferedReader(archive.open(names[0]))  # type: ignore[type-var]
    return path.open("rb")


def read_json_lines(path: Path, drops: Counter[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one per line; any other line is counted."""
    for line in read_lines(path, drops):
        if not line.strip():
            continue
        value = parse_json(line)
        if isinstance(value, dict):
            yield value
        else:
            drops["line that is no JSON object"] += 1


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON text; None if it is malformed or nested too deep."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def read_json_array(path: Path, drops: Counter[str]) -> Iterator[dict[str, Any]]:
    """The objects of a file that is one JSON array, read one after the other; a JSONL file works too.

    Raises:
        InputError: the array is malformed or breaks off, or an element is larger than `LARGEST_FILE`.
    """
    decoder, block = json.JSONDecoder(), 2**20
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(block).lstrip("\ufeff \r\n\t")
        if not text.startswith("["):
            yield from read_json_lines(path, drops)
            return
        at = 1
        while True:
            at = _SEPARATORS.match(text, at).end()  # type: ignore[union-attr]
            if text.startswith("]", at):
                return
            try:
                value, at = decoder.raw_decode(text, at)
            except RecursionError as error:
                raise InputError(f"{path.name} is nested too deep") from error
            except ValueError as error:
                text, at = text[at:], 0
                more = file.read(max(block, len(text)))
                if not more or len(text) > LARGEST_FILE:
                    raise InputError(f"{path.name} is no JSON array of objects, or breaks off: {error}") from error
                text += more
                continue
            if isinstance(value, dict):
                yield value
            else:
                drops["element that is no JSON object"] += 1

"""A part of the input: the files that are read, kept or lost together, and how their bytes are read safely.

Everything here is written by strangers. What is read is bounded before it is read, and a name that leads out of its
folder is no file.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mm1.prepare.fetch import Web

LARGEST_FILE = 64 * 2**20
"""Bytes of the largest picture, page or line that is read: a larger one is left out unread and counted."""

LARGEST_INDEX = 2 * 2**30
"""Bytes of the largest file that has to be read whole before its first document (COCO captions)."""

_BETWEEN = re.compile(r"[,\s]*")


class InputError(ValueError):
    """Input that cannot be read as what it is taken for: says which, what was expected, what to change."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some files of the input. `root` is the folder that no name inside them may lead out of."""

    name: str
    root: Path
    files: tuple[Path, ...]
    pictures: Path | None = None  # the folder that picture names are relative to, where it is another one
    web: Web | None = None  # how pictures named by address are fetched, where the user allows it
    kind: str = ""  # which reader reads it
    source: str = ""  # what its documents say they come from

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where a picture named in the files may lie, in the order in which it is looked for."""
        return (self.root / "images", self.root) if self.pictures is None else (self.pictures,)


def inside(folder: Path, name: str) -> Path | None:
    """The file `name` of a folder; None when it is missing, or lies elsewhere (`../x`, an absolute name, a link)."""
    try:
        path = folder.joinpath(name).resolve()
        return path if path.is_relative_to(folder.resolve()) and path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # a name too long, with a zero byte, a link to itself
        return None


def find_picture(part: Part, name: str, drops: Counter[str]) -> bytes | None:
    """The bytes of a picture that a file of the part names; None, counted, when it cannot be had."""
    for folder in part.folders:
        path = inside(folder, name)
        if path is not None:
            return read_bounded(path, drops)
    climbs = os.path.isabs(name) or ".." in Path(name).parts
    drops["picture whose name leads out of its folder" if climbs else "picture that is missing"] += 1
    return None


def read_bounded(path: Path, drops: Counter[str]) -> bytes | None:
    """The bytes of a file; None, counted, when it is larger than `LARGEST_FILE`."""
    if path.stat().st_size > LARGEST_FILE:
        drops[f"file of more than {LARGEST_FILE >> 20} MB"] += 1
        return None
    return path.read_bytes()


def files_of(root: Path, *endings: str) -> list[Path]:
    """The files below `root` (or `root` itself) that end so, sorted; links that lead out of it are left out."""
    if root.is_file():
        return [root] if root.name.lower().endswith(endings) else []
    found = (path for path in sorted(root.rglob("*")) if path.name.lower().endswith(endings))
    return [path for path in found if inside(root, path.relative_to(root).as_posix())]


def one_each(root: Path, *endings: str, pictures: Path | None = None) -> list[Part]:
    """One part for each file that ends so."""
    folder = root if root.is_dir() else root.parent
    return [Part(p.relative_to(folder).as_posix(), folder, (p,), pictures) for p in files_of(root, *endings)]


def lines_of(path: Path, drops: Counter[str]) -> Iterator[bytes]:
    """The lines of a text file, unpacked (.gz, .zst, .bz2, .zip) as it is read; overlong lines are counted.

    Raises:
        InputError: the packed file is broken.
    """
    try:
        with _unpacked(path) as file:
            while line := file.readline(LARGEST_FILE):
                if len(line) < LARGEST_FILE:
                    yield line
                    continue
                drops[f"line of more than {LARGEST_FILE >> 20} MB"] += 1
                while line and not line.endswith(b"\n"):
                    line = file.readline(LARGEST_FILE)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path.name} breaks off or is no {path.suffix} file: {error}") from error


def _unpacked(path: Path) -> BinaryIO | io.BufferedReader:
    import pyarrow as pa

    ending = path.suffix.lower()
    if ending == ".gz":
        return io.BufferedReader(gzip.open(path))
    if ending == ".bz2":
        return io.BufferedReader(bz2.open(path))
    if ending in (".zst", ".zstd"):
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))  # it says when a frame is cut off
    if ending == ".zip":
        bundle = zipfile.ZipFile(path)
        names = bundle.namelist()
        if len(names) != 1:
            raise InputError(f"{path.name} holds {len(names)} files; a packed text file holds one")
        return io.BufferedReader(bundle.open(names[0]))  # type: ignore[type-var]
    return path.open("rb")


def objects_of(path: Path, drops: Counter[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one a line; a line that is none is counted."""
    for line in lines_of(path, drops):
        if not line.strip():
            continue
        found = parse_json(line)
        if isinstance(found, dict):
            yield found
        else:
            drops["line that is no JSON object"] += 1


def parse_json(text: bytes | str) -> Any:
    """What the JSON says; None when it is none, or nested too deep."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def elements_of(path: Path, drops: Counter[str]) -> Iterator[dict[str, Any]]:
    """The objects of a JSON file that is one array, read as they come; a JSONL file works too.

    Raises:
        InputError: the array breaks off, is none, or an element is larger than `LARGEST_FILE`.
    """
    decoder, step = json.JSONDecoder(), 2**20
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(step).lstrip("\ufeff \r\n\t")
        if not text.startswith("["):
            yield from objects_of(path, drops)
            return
        at = 1
        while True:
            at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
            if text.startswith("]", at):
                return
            try:
                found, at = decoder.raw_decode(text, at)
            except RecursionError as error:
                raise InputError(f"{path.name} is nested too deep") from error
            except ValueError as error:
                text, at = text[at:], 0
                more = file.read(max(step, len(text)))
                if not more or len(text) > LARGEST_FILE:
                    raise InputError(f"{path.name} is no JSON array of objects, or breaks off: {error}") from error
                text += more
                continue
            if isinstance(found, dict):
                yield found
            else:
                drops["element that is no JSON object"] += 1

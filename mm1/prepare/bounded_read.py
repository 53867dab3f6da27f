"""Bytes, lines and JSON out of files that strangers wrote: every size is bounded before anything is read.

What is too large or malformed is left out and counted in the ledger; no name leads out of its folder.
"""

import bz2
import codecs
import gzip
import io
import json
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

from mm1.document import Image
from mm1.prepare.ledger import Dropped, Ledger, MissingImage
from mm1.prepare.shard import InputError, Shard, Span, file_inside
from mm1.prepare.watch import note_file

LARGEST_FILE = 64 * 2**20
"""Bytes of the largest picture, page or line that is read: a larger one is left out unread and counted."""

LARGEST_INDEX = 2 * 2**30
"""Bytes of the largest file that has to be read whole before its first document (COCO captions)."""

LARGEST_DICTIONARY = 256 * 2**20
"""Bytes of the largest dictionary with which an .xz file is unpacked; `xz -9` takes 64 MB, and a file may ask for 4 GB.
zstd's own limit is 128 MB."""

PACKED = (".gz", ".zst", ".bz2", ".xz", ".zip")
"""Endings of packed files of text, which are read as what they hold."""

MISSING = "picture that is missing"
"""The reason of a picture whose file is not there."""

NOT_UTF8 = "text that is not UTF-8"
"""The reason of a text in another encoding that no byte order mark names."""

CLOSED = "picture whose file cannot be read"
"""The reason of a picture whose file is there and cannot be read."""

MISSING_HINT = "pictures=FOLDER names the folder of the pictures, if they are elsewhere"

_BROKEN = (OSError, EOFError, lzma.LZMAError, zipfile.BadZipFile, zlib.error, UnicodeError, RuntimeError)
"""What unpacking raises; `RuntimeError` where a zip is encrypted, or packed in a way that Python doesn't know."""

_MARKS = {  # UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_picture(shard: Shard, name: str) -> Image:
    """The picture that a file of the shard names; a `MissingImage` if it cannot be read."""
    if name.startswith("file://"):
        name = unquote(name.removeprefix("file://").removeprefix("localhost"))
    for folder in shard.picture_folders:
        path = file_inside(folder, name, bound=shard.picture_folder or shard.root)
        if path is not None:
            try:
                return Image(read_file(path))
            except (Dropped, OSError) as error:
                reason = error.reason if isinstance(error, Dropped) else CLOSED
                return MissingImage(reason=reason, name=name)
    leads_out = os.path.isabs(name) or ".." in Path(name.replace("\\", "/")).parts
    reason = "picture whose name leads out of its folder" if leads_out else MISSING
    return MissingImage(reason=reason, name=name)


def read_file(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        Dropped: it is larger than `LARGEST_FILE`.
    """
    note_file(path)
    if path.stat().st_size > LARGEST_FILE:
        raise Dropped(f"file of more than {LARGEST_FILE >> 20} MB", detail=path.name)
    return path.read_bytes()


def text_encoding(head: bytes) -> str | None:
    """The encoding that a byte order mark at the start of a text names; None without one, or with that of UTF-8."""
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)


def read_head(path: Path, size: int) -> bytes:
    """The first bytes of a text file, decompressed.

    Raises:
        InputError: the compressed file is broken.
    """
    with open_unpacked(path) as file:
        return file.read(size)


def decode_text(data: bytes) -> str:
    """The text of a file, UTF-8 unless a byte order mark says UTF-16 or UTF-32; without the mark.

    Raises:
        Dropped: it is in another encoding.
    """
    try:
        return data.decode(text_encoding(data) or "utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise Dropped(NOT_UTF8, detail=str(error)) from None


def read_lines(path: Path, ledger: Ledger, *, span: Span | None = None) -> Iterator[tuple[int, bytes]]:
    """(number from 0, line) of a text file, unpacked as it is read; those of `span` alone.

    An overlong line is a record that is left out.

    Raises:
        InputError: the compressed file is broken.
    """
    number, stop = (0, None) if span is None else (span.first, span.stop)
    with open_unpacked(path) as file:
        if span is not None:
            file.seek(span.start)
        while (stop is None or file.tell() < stop) and (line := file.readline(LARGEST_FILE)):
            if len(line) < LARGEST_FILE:
                yield number, line
            else:
                with ledger.record(f"line {number + 1}", line[:1000]):
                    while line and not line.endswith(b"\n"):
                        line = file.readline(LARGEST_FILE)
                    raise Dropped(f"line of more than {LARGEST_FILE >> 20} MB")
            number += 1


def unpacked_name(path: Path) -> str:
    """The name of a file of text in small letters, without the ending that says how it is packed."""
    name = path.name.lower()
    return name.rpartition(".")[0] if name.endswith(PACKED) else name


@contextmanager
def open_unpacked(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes of a file of text, unpacked as they are read; of one in UTF-16 or UTF-32, in UTF-8.

    Raises:
        InputError: the packed file is broken, or the user may not read it.
    """
    try:
        with unpacked(path, path.suffix.lower()) as file:
            encoding = text_encoding(file.peek(4))
            yield file if encoding is None else io.BufferedReader(_Blocks(_in_utf8(file, encoding)))
    except PermissionError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}; give yourself the right to read it") from error
    except _BROKEN as error:
        raise InputError(f"{path.name} breaks off or is no {path.suffix} file: {error}") from error


class _Blocks(io.RawIOBase):
    """A file whose content comes in blocks of bytes."""

    def __init__(self, blocks: Iterator[bytes]):
        self._blocks, self._rest = blocks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest and (block := next(self._blocks, None)) is not None:
            self._rest = block
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def _in_utf8(file: io.BufferedReader, encoding: str) -> Iterator[bytes]:
    """A text in another encoding, in UTF-8. What is no Unicode stays none, and is left to the reader."""
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    while block := file.read(2**16):
        yield decoder.decode(block).encode("utf-8", "surrogatepass")


def _out_of_xz(path: Path) -> Iterator[bytes]:
    """The unpacked content of an .xz file; `LZMAFile` would take as much memory as the file asks for.

    It is streams one after the other, each followed by zeros in multiples of four or by none (xz-file-format 1.2,
    section 2.2); anything else after a stream is refused, as `xz` refuses it.

    Raises:
        InputError: it asks for more than `LARGEST_DICTIONARY`. LZMAError, EOFError: it is broken, or breaks off.
    """
    with path.open("rb") as file:
        data = file.read(2**16)
        while True:
            unpacker = lzma.LZMADecompressor(memlimit=LARGEST_DICTIONARY + 2**20)
            while not unpacker.eof:
                if unpacker.needs_input and not data and not (data := file.read(2**16)):
                    raise EOFError("its end is missing")
                try:
                    yield unpacker.decompress(data, 2**16)
                except lzma.LZMAError as error:
                    raise _too_large_dictionary(path) if "limit" in str(error) else error from None
                data = b""
            if not (data := _after_padding(unpacker.unused_data, file)):
                return


def _after_padding(data: bytes, file: BinaryIO) -> bytes:
    """What follows the zeros that `data` and the rest of the file begin with."""
    zeros = 0
    while True:
        rest = data.lstrip(b"\0")
        zeros += len(data) - len(rest)
        if rest or not (data := file.read(2**16)):
            break
    if zeros % 4:
        raise lzma.LZMAError(f"{zeros} zeros after a stream, no multiple of four")
    return rest


def _too_large_dictionary(path: Path) -> InputError:
    return InputError(
        f"{path.name} takes more than {LARGEST_DICTIONARY >> 20} MB of memory to unpack; "
        f"pack it with a smaller dictionary (xz -6)"
    )


def unpacked(path: Path, ending: str) -> io.BufferedReader:
    """The bytes of a file that is packed as its ending (.gz, .bz2, .xz, .zst, .zip; others are not) says."""
    import pyarrow as pa

    if ending == ".gz":
        return io.BufferedReader(gzip.open(path))
    if ending == ".bz2":
        return io.BufferedReader(bz2.open(path))
    if ending == ".xz":
        return io.BufferedReader(_Blocks(_out_of_xz(path)))
    if ending in (".zst", ".zstd"):  # Arrow's reader notices a frame that is cut off
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    if ending == ".zip":
        archive = zipfile.ZipFile(path)
        names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
        if len(names) != 1:
            raise InputError(f"{path.name} holds {len(names)} files; a packed text file holds one")
        if archive.getinfo(names[0]).compress_type == zipfile.ZIP_LZMA:  # Python bounds no dictionary in a zip
            raise InputError(f"{path.name} is packed by LZMA, which is not read in a zip; pack it as .xz or by Deflate")
        return io.BufferedReader(cast(io.RawIOBase, archive.open(names[0])))
    return path.open("rb")


def read_json_lines(shard: Shard, ledger: Ledger) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of its line from 0, JSON object) of the shard's file; any other line is a record that is left out."""
    for number, line in read_lines(shard.files[0], ledger, span=shard.span):
        if not line.strip():
            continue
        value = parse_json(line)
        if isinstance(value, dict):
            yield number, value
            continue
        with ledger.record(f"line {number + 1}", line):
            raise Dropped("line that is no JSON object")


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON text; None if it is malformed or nested too deep."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None

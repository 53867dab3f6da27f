"""The responses of a WARC file, as wget, warcio and Common Crawl write them: their addresses and their bodies.

https://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/
"""

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import quote, unquote, urljoin, urlsplit

from mm1.prepare.bounded_read import LARGEST_FILE
from mm1.prepare.ledger import Dropped
from mm1.prepare.shard import InputError

_CHARSET = re.compile(r"charset\s*=\s*[\"']?([^\"'\s;]{1,40})", re.IGNORECASE)
_CHUNK = re.compile(rb"\s*([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]{0,1000})?\r?\n")
_PAGE_TYPES = ("text/html", "application/xhtml+xml")
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
_GZIP = b"\x1f\x8b"
_ZSTD, _ZSTD_DICTIONARY = b"\x28\xb5\x2f\xfd", b"\x5d\x2a\x4d\x18"
_BLOCK = 2**20

WITHOUT_HEADER = "response without an HTTP header"
"""The reason of a response that something is wrong with; the other responses that are not read are just no pages."""


@dataclass(frozen=True, slots=True)
class Response:
    """A response of a WARC file; `offset` is where in the file it starts.

    kind     `page`, `picture`, or `other` with the reason in `why`
    target   the address, or the id of the record, that it refers to, if it redirects or repeats another response
    id       the record's own id
    """

    url: str
    offset: int
    kind: str
    why: str = ""
    target: str = ""
    charset: str = ""
    id: str = ""


@dataclass(frozen=True, slots=True)
class PictureIndex:
    """Where in a WARC file its pictures start, by address, and which addresses stand for others."""

    offsets: dict[str, int]
    targets: dict[str, str]

    @staticmethod
    def of(path: Path) -> "PictureIndex":
        """The index of a file. Raises InputError as `read_responses` does."""
        index = PictureIndex({}, {})
        for response, _ in read_responses(path):
            if response.kind == "picture":
                index.offsets[url_key(response.url)] = index.offsets[response.id] = response.offset
            elif response.target:
                target = response.target if response.target.startswith("urn:") else url_key(response.target)
                index.targets.setdefault(url_key(response.url), target)
        return index

    def key(self, url: str) -> str:
        """What stands for an address in `offsets`, after redirects."""
        key = url_key(url)
        for _ in range(_MOST_REDIRECTS):
            if key in self.offsets or key not in self.targets:
                break
            key = self.targets[key]
        return key


def url_key(url: str) -> str:
    """What two spellings of an address have in common: `%20` or a space, `http` or `https`, with or without `#part`."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return url
    host = host if port in (None, 80, 443) else f"{host}:{port}"
    path, query = (quote(unquote(text), safe="/&=;:@!$'()*+,~") for text in (parts.path or "/", parts.query))
    return f"{host}{path}?{query}" if query else f"{host}{path}"


def read_responses(path: Path, *, start: int = 0) -> Iterator[tuple[Response, Any]]:
    """Each response from `start` on, and its record, whose body `read_body` reads.

    Raises:
        InputError: the file is no WARC, or breaks off.
    """
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    last: int | None = None
    try:
        with path.open("rb") as file:
            for record in ArchiveIterator(_from(start, file), record_types=WarcRecordType.any_type, parse_http=False):
                last = record.stream_pos
                if record.record_type in (WarcRecordType.response, WarcRecordType.resource, WarcRecordType.revisit):
                    yield _response(record, record.stream_pos), record
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path.name} is no WARC file, or breaks off: {error}") from error
    if last is None and not start:
        raise InputError(f"{path.name} holds no WARC record")
    if last is not None and not _is_whole(path, last):
        raise InputError(f"{path.name} breaks off in its last record; download it again")


class _AfterDictionary:
    """A `.warc.zst` from the position of its file on, with the dictionary of its frames before it.

    https://iipc.github.io/warc-specifications/specifications/warc-zstd/
    """

    def __init__(self, dictionary: bytes, file: BinaryIO):
        self._dictionary, self._file, self._position = io.BytesIO(dictionary), file, 0

    def read(self, size: int) -> bytes:
        block = self._dictionary.read(size) or self._file.read(size)
        self._position += len(block)
        return block

    def tell(self) -> int:  # FastWARC looks for a dictionary at 0 alone
        return self._position


def _from(start: int, file: BinaryIO) -> Any:
    """The opened WARC file from `start` on, as FastWARC can read it."""
    head = file.read(8)
    length = int.from_bytes(head[4:], "little")
    dictionary = head + file.read(min(length, LARGEST_FILE)) if start and head.startswith(_ZSTD_DICTIONARY) else b""
    file.seek(start)
    return _AfterDictionary(dictionary, file) if dictionary else file


def _is_whole(path: Path, last: int) -> bool:
    """Whether a WARC file ends where its last record does, which starts at `last`: FastWARC ends quietly before.

    Not in a `.warc.zst`, where it says that a frame is incomplete.
    """
    with path.open("rb") as file:
        head = file.read(4)
        if head in (_ZSTD, _ZSTD_DICTIONARY):
            return True
        is_packed = head.startswith(_GZIP)
        file.seek(last)
        if is_packed and file.peek(2)[:2] != _GZIP:
            return True  # compressed as a whole: `last` is no position in the file
        reader: BinaryIO = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if is_packed else file
        try:
            missing: int | None = None
            while header := (line := reader.readline(_BLOCK)).strip():
                name, _, value = header.partition(b":")
                missing = int(value) if name.strip().lower() == b"content-length" else missing
            if missing is None or not line:
                return False
            while missing and (block := reader.read(min(missing, _BLOCK))):
                missing -= len(block)
            return not missing and _ends_well(reader, file, is_packed=is_packed)
        except (OSError, EOFError, ValueError, zlib.error):
            return False


def _ends_well(reader: BinaryIO, file: BinaryIO, *, is_packed: bool) -> bool:
    """Whether nothing that has only begun follows the last record. Packed, records may share a member of the file."""
    try:
        rest = reader.read(_BLOCK).strip()
        while is_packed and reader.read(_BLOCK):
            pass
    except gzip.BadGzipFile:  # an empty line after the last member?
        file.seek(-1, 2)
        return file.read(1) in b"\r\n"
    return not rest or (is_packed and rest.startswith(b"WARC/"))


def _response(record: Any, offset: int) -> Response:
    from fastwarc.warc import WarcRecordType

    url = _header(record.headers, "WARC-Target-URI").strip("<> ")  # GNU wget writes the angle brackets
    if record.record_type == WarcRecordType.revisit:
        names = ("WARC-Refers-To", "WARC-Refers-To-Target-URI")
        target = next(filter(None, (_header(record.headers, name).strip("<> ") for name in names)), "")
        return Response(url, offset, "other", "response that repeats another one (revisit)", target)
    content_type, status = _header(record.headers, "Content-Type"), 200
    if record.record_type == WarcRecordType.response:
        if "http" not in content_type.lower() and not url.startswith("http"):
            return Response(url, offset, "other", "response of another protocol than HTTP")
        record.parse_http(auto_decode="none")  # FastWARC 2.0.1 loses the records after one that it decodes
        headers = record.http_headers
        if headers is None:
            return Response(url, offset, "other", WITHOUT_HEADER)
        status, content_type = headers.status_code or 0, _header(headers, "Content-Type")
        location = _header(headers, "Location")
        if status in _REDIRECTS and location:
            return Response(url, offset, "other", "response that redirects to another address", _joined(url, location))
    if status != 200:
        return Response(url, offset, "other", f"response with the status {status}")
    kind = content_type.partition(";")[0].strip().lower()
    if kind in _PAGE_TYPES:
        charset = _CHARSET.search(content_type)
        return Response(url, offset, "page", charset=charset[1] if charset else "")
    if kind.startswith("image/") or (kind in ("", "application/octet-stream") and _is_picture_name(url)):
        return Response(url, offset, "picture", id=_header(record.headers, "WARC-Record-ID").strip("<> "))
    return Response(url, offset, "other", "response that is neither a page nor a picture")


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        return ""


def _is_picture_name(url: str) -> bool:
    path = url.partition("?")[0].lower()
    return path.endswith((".jpg", ".jpeg", ".png", ".webp", ".gif", ".avif"))


def _header(headers: Any, name: str) -> str:
    """The value of a header, whatever the case of its name; empty if it is missing."""
    return next((value for key, value in headers.items() if key.lower() == name.lower()), "")


def read_body(record: Any, path: Path) -> bytes:
    """The body of a response: its chunks joined, decompressed.

    Raises:
        Dropped: it is too large, or its chunks or its compression are broken. InputError: the file breaks off in it.
    """
    body = record.reader.read(LARGEST_FILE + 1)
    if len(body) > LARGEST_FILE:
        raise Dropped(f"web page or picture of more than {LARGEST_FILE >> 20} MB")
    if len(body) < record.content_length:
        raise InputError(f"{path.name} breaks off inside {_header(record.headers, 'WARC-Target-URI')}")
    if record.http_headers is None:
        return body
    if "chunked" in _header(record.http_headers, "Transfer-Encoding").lower():
        body = join_chunks(body)
    for name in reversed(_header(record.http_headers, "Content-Encoding").lower().split(",")):
        body = decompress(body, name.strip())
    return body


def join_chunks(body: bytes) -> bytes:
    """The body without the sizes of its chunks (RFC 9112, section 7.1); unchanged if a tool has joined them before.

    Raises:
        Dropped: the chunks break off.
    """
    if not _CHUNK.match(body):
        return body
    joined, at = bytearray(), 0
    while size := _CHUNK.match(body, at):
        length, at = int(size[1], 16), size.end()
        if length == 0:
            return bytes(joined)
        if at + length > len(body):
            break
        joined += body[at : at + length]
        at += length
    raise Dropped("response whose chunks are broken")


def decompress(body: bytes, encoding: str) -> bytes:
    """The decompressed body; unchanged if a tool has decompressed it before.

    Raises:
        Dropped: it is broken, or compressed in a way that is not read, or too large.
    """
    if encoding in ("", "identity", "none", "binary", "utf-8") or not body:
        return body
    try:
        if encoding in ("gzip", "x-gzip"):
            return _inflate(body, 31) if body.startswith(b"\x1f\x8b") else body
        if encoding == "deflate":
            return _inflate(body, 15 if body[0] & 0x0F == 8 and int.from_bytes(body[:2]) % 31 == 0 else -15)
        if encoding in ("br", "zstd"):
            return _by_arrow(body, "brotli" if encoding == "br" else "zstd")
    except (zlib.error, OSError) as error:
        raise Dropped("response whose compression is broken", detail=str(error)) from None
    raise Dropped("response in a compression that is not read", detail=encoding)


def _inflate(body: bytes, window: int) -> bytes:
    inflater = zlib.decompressobj(window)
    data = inflater.decompress(body, LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise Dropped(f"web page or picture of more than {LARGEST_FILE >> 20} MB")
    if not inflater.eof:
        raise zlib.error("it breaks off")
    return data


def _by_arrow(body: bytes, codec: str) -> bytes:
    import pyarrow as pa

    with pa.CompressedInputStream(pa.BufferReader(body), codec) as stream:
        data = stream.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise Dropped(f"web page or picture of more than {LARGEST_FILE >> 20} MB")
    return data

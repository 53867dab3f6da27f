"""Reads web pages: a folder of HTML files with their images, and WARC files."""

import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

import PIL.Image

from mm1.document import Document, Image, Piece, Text
from mm1.prepare.bounded_read import LARGEST_FILE, read_file
from mm1.prepare.fetch import FetchError
from mm1.prepare.html.lines import ImageAddress
from mm1.prepare.html.main_content import PageError, main_content
from mm1.prepare.shard import InputError, Shard, file_inside

_ICON_WORDS = ("logo", "button", "icon", "plugin", "widget")  # OBELICS, arXiv 2306.16527, appendix A.1.3
_ICON_SIDE = 64  # pixels: icons in running text, buttons and 48 x 48 notes have no side that long
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow knows more, some of which run other programs
_SITE = "file:///"  # stands for the folder of the pages


def is_icon(url: str) -> bool:
    """Whether an image's address says that it is an icon (the words of OBELICS)."""
    path = urlsplit(url).path.lower()
    return any(word in path for word in _ICON_WORDS)


def read_html(shard: Shard, drops: Counter[str]) -> Iterator[Document]:
    """The main content of each page of a folder, with the images of that folder. Pages without content are counted."""
    for file in shard.files:
        path = file.relative_to(shard.root).as_posix()
        content = read_file(file, drops)
        if content is None:
            continue
        url = f"{_SITE}{quote(path)}"
        pieces = _page_pieces(content, url, drops, image_of=lambda address: _image_in_folder(address, shard, drops))
        if pieces:
            yield Document(pieces, id=path)


def _page_pieces(
    content: bytes, url: str, drops: Counter[str], *, image_of: Callable[[ImageAddress], Image | None]
) -> tuple[Piece, ...]:
    """The page's text and images; empty, counted, if it has no content.

    Where an image is left out, the line of text that it interrupted goes on.
    """
    try:
        content_pieces = main_content(content, url)
    except PageError as error:
        drops[str(error)] += 1
        return ()
    pieces: list[Piece] = []
    left_out: ImageAddress | None = None
    for piece in content_pieces:
        if isinstance(piece, ImageAddress):
            image = image_of(piece)
            left_out = piece if image is None else None
            pieces += [] if image is None else [image]
        elif left_out is not None and pieces and isinstance(last := pieces[-1], Text):
            joined = f"{last.text.rstrip()} {piece.text.lstrip()}" if left_out.inline else last.text + piece.text
            pieces[-1] = Text(joined)
        else:
            pieces.append(piece)
    if not pieces:
        drops["page without content"] += 1
    return tuple(pieces)


def _image_in_folder(address: ImageAddress, shard: Shard, drops: Counter[str]) -> Image | None:
    """The image of a page in a folder; None, counted, if it is elsewhere or an icon."""
    parts = urlsplit(address.url)
    if parts.scheme in ("http", "https"):
        return _fetched_image(address.url, shard, drops)
    if is_icon(address.url):
        drops["image with a word of icons in its address"] += 1
        return None
    path = file_inside(shard.root, unquote(parts.path).lstrip("/"))
    if path is None:
        drops["image that is not in the folder"] += 1
        return None
    return _unless_icon(read_file(path, drops), drops)


def _unless_icon(data: bytes | None, drops: Counter[str]) -> Image | None:
    """The image; None if it is missing or, by the size in its header, an icon."""
    if data is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the filter of pictures, which decodes it, refuses one that is too large
            size = PIL.Image.open(io.BytesIO(data), formats=_FORMATS).size
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError):
        return Image(data)
    if max(size) < _ICON_SIDE:
        drops[f"image without a side of {_ICON_SIDE} pixels, an icon"] += 1
        return None
    return Image(data)


def _fetched_image(url: str, shard: Shard, drops: Counter[str]) -> Image | None:
    if is_icon(url):
        drops["image with a word of icons in its address"] += 1
        return None
    if shard.fetcher is None:
        drops["image by address only, not fetched (fetch=true fetches)"] += 1
        return None
    data = shard.fetcher.fetch_all([url])[0]
    if isinstance(data, FetchError):
        drops[str(data)] += 1
        return None
    return _unless_icon(data, drops)


def read_warc(shard: Shard, drops: Counter[str]) -> Iterator[Document]:
    """The main content of each HTML response of a WARC file (https://iipc.github.io/warc-specifications/).

    Images that the same file holds are taken from it; others are fetched if that is allowed.

    Raises:
        InputError: the file is no WARC, or breaks off.
    """
    offsets = {response.url: response.offset for response in _responses(shard, Counter(), of="image/")}

    def image_of(address: ImageAddress) -> Image | None:
        if address.url not in offsets or is_icon(address.url):
            return _fetched_image(address.url, shard, drops)
        response = next(_responses(shard, drops, of="image/", start=offsets[address.url]), None)
        return None if response is None else _unless_icon(response.body, drops)

    for response in _responses(shard, drops, of="html"):
        pieces = _page_pieces(response.body, response.url, drops, image_of=image_of)
        if pieces:
            yield Document(pieces, id=response.url, metadata={"url": response.url})


@dataclass(frozen=True, slots=True)
class _WarcResponse:
    """A response of a WARC file; `offset` is where in the file it starts."""

    url: str
    offset: int
    body: bytes


def _responses(shard: Shard, drops: Counter[str], *, of: str, start: int = 0) -> Iterator[_WarcResponse]:
    """The successful responses from `start` on with `of` in their content type; too large ones are counted."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    path, records = shard.files[0], 0
    try:
        with path.open("rb") as file:
            file.seek(start)
            for record in ArchiveIterator(file, record_types=WarcRecordType.any_type, parse_http=False):
                records += 1
                if record.record_type != WarcRecordType.response:
                    continue
                record.parse_http(auto_decode="all")
                headers = record.http_headers
                content_type = (record.http_content_type or "").lower()
                if headers is None or headers.status_code != 200 or of not in content_type:
                    continue
                body = record.reader.read(LARGEST_FILE + 1)
                if len(body) > LARGEST_FILE:
                    drops[f"web page of more than {LARGEST_FILE >> 20} MB"] += 1
                    continue
                encoded = headers.get("Content-Encoding") or headers.get("Transfer-Encoding")
                if len(body) < record.content_length and not encoded:
                    raise InputError(f"{path.name} breaks off inside {record.headers.get('WARC-Target-URI')}")
                url = record.headers.get("WARC-Target-URI") or ""
                yield _WarcResponse(url, start + record.stream_pos, body)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path.name} is no WARC file, or breaks off: {error}") from error
    if not records and not start:
        raise InputError(f"{path.name} holds no WARC record")

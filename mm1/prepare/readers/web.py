"""Reads web pages: a folder of HTML files with their images, and WARC files."""

import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote, urlsplit

import PIL.Image

from mm1.document import Image, Piece
from mm1.prepare.bounded_read import LARGEST_FILE, read_file
from mm1.prepare.fetch import FetchError
from mm1.prepare.html.lines import ImageAddress
from mm1.prepare.html.main_content import PageError, main_content
from mm1.prepare.ledger import Dropped, InlineImage, Ledger, MissingImage, Page
from mm1.prepare.shard import InputError, Shard, file_inside

_ICON_WORDS = ("logo", "button", "icon", "plugin", "widget")  # OBELICS, arXiv 2306.16527, appendix A.1.3
_ICON_SIDE = 64  # pixels: icons in running text, buttons and 48 x 48 notes have no side that long
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow knows more, some of which run other programs
_ICON_ADDRESS = "image with a word of icons in its address"
_SITE = "file:///"  # stands for the folder of the pages


def is_icon(url: str) -> bool:
    """Whether an image's address says that it is an icon (the words of OBELICS)."""
    path = urlsplit(url).path.lower()
    return any(word in path for word in _ICON_WORDS)


def read_html(shard: Shard, ledger: Ledger) -> Iterator[Page]:
    """The main content of each page of a folder, with the images of that folder. Pages without content are dropped."""
    for file in shard.files:
        path = file.relative_to(shard.root).as_posix()
        with ledger.record(path):
            url = f"{_SITE}{quote(path)}"
            pieces = _page_pieces(read_file(file), url, image_of=lambda address: _image_in_folder(address, shard))
            yield Page(pieces, id=path)


def _page_pieces(content: bytes, url: str, *, image_of: Callable[[ImageAddress], Image]) -> tuple[Piece, ...]:
    """The page's text and images.

    Raises:
        Dropped: it has no content.
    """
    try:
        content_pieces = main_content(content, url)
    except PageError as error:
        raise Dropped(str(error)) from None
    if not content_pieces:
        raise Dropped("page without content")
    return tuple(
        _placed(image_of(piece), piece) if isinstance(piece, ImageAddress) else piece for piece in content_pieces
    )


def _placed(image: Image, address: ImageAddress) -> Image:
    """The image as it stands in its line."""
    if isinstance(image, MissingImage):
        return replace(image, name=address.url, inline=address.inline)
    return InlineImage(image.data) if address.inline else image


def _image_in_folder(address: ImageAddress, shard: Shard) -> Image:
    """The image of a page in a folder; a `MissingImage` if it is elsewhere or an icon."""
    parts = urlsplit(address.url)
    if parts.scheme in ("http", "https"):
        return _fetched_image(address.url, shard)
    if is_icon(address.url):
        return MissingImage(reason=_ICON_ADDRESS, expected=True)
    path = file_inside(shard.root, unquote(parts.path).lstrip("/"))
    if path is None:
        return MissingImage(reason="image that is not in the folder")
    try:
        return _unless_icon(read_file(path))
    except Dropped as dropped:
        return MissingImage(reason=dropped.reason)


def _unless_icon(data: bytes) -> Image:
    """The image; a `MissingImage` if it is, by the size in its header, an icon."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the filter of pictures, which decodes it, refuses one that is too large
            size = PIL.Image.open(io.BytesIO(data), formats=_FORMATS).size
    except Exception:  # the filter of pictures refuses it, too
        return Image(data)
    if max(size) < _ICON_SIDE:
        return MissingImage(reason=f"image without a side of {_ICON_SIDE} pixels, an icon", expected=True)
    return Image(data)


def _fetched_image(url: str, shard: Shard) -> Image:
    if is_icon(url):
        return MissingImage(reason=_ICON_ADDRESS, expected=True)
    if shard.fetcher is None:
        return MissingImage(reason="image by address only, not fetched (fetch=true fetches)")
    data = shard.fetcher.fetch_all([url])[0]
    return MissingImage(reason=str(data)) if isinstance(data, FetchError) else _unless_icon(data)


def read_warc(shard: Shard, ledger: Ledger) -> Iterator[Page]:
    """The main content of each HTML response of a WARC file (https://iipc.github.io/warc-specifications/).

    Images that the same file holds are taken from it; others are fetched if that is allowed.

    Raises:
        InputError: the file is no WARC, or breaks off.
    """
    offsets = {response.url: response.offset for response in _responses(shard, of="image/")}

    def image_of(address: ImageAddress) -> Image:
        if address.url not in offsets or is_icon(address.url):
            return _fetched_image(address.url, shard)
        response = next(_responses(shard, of="image/", start=offsets[address.url]), None)
        if response is None or response.body is None:
            return MissingImage(reason=f"file of more than {LARGEST_FILE >> 20} MB")
        return _unless_icon(response.body)

    for response in _responses(shard, of="html"):
        with ledger.record(response.url):
            if response.body is None:
                raise Dropped(f"web page of more than {LARGEST_FILE >> 20} MB")
            pieces = _page_pieces(response.body, response.url, image_of=image_of)
            yield Page(pieces, id=response.url, metadata={"url": response.url})


@dataclass(frozen=True, slots=True)
class _WarcResponse:
    """A response of a WARC file; `offset` is where in the file it starts. Without a body, that is too large."""

    url: str
    offset: int
    body: bytes | None


def _responses(shard: Shard, *, of: str, start: int = 0) -> Iterator[_WarcResponse]:
    """The successful responses from `start` on with `of` in their content type."""
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
                too_large = len(body) > LARGEST_FILE
                encoded = headers.get("Content-Encoding") or headers.get("Transfer-Encoding")
                if len(body) < record.content_length and not encoded and not too_large:
                    raise InputError(f"{path.name} breaks off inside {record.headers.get('WARC-Target-URI')}")
                url = record.headers.get("WARC-Target-URI") or ""
                yield _WarcResponse(url, start + record.stream_pos, None if too_large else body)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path.name} is no WARC file, or breaks off: {error}") from error
    if not records and not start:
        raise InputError(f"{path.name} holds no WARC record")

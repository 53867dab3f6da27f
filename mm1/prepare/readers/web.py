"""Reads web pages: a folder of HTML files with their images, and WARC files."""

import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import PIL.Image

from mm1.document import Image, Piece, Text
from mm1.prepare.bounded_read import CLOSED, read_file
from mm1.prepare.fetch import FetchError
from mm1.prepare.html.image_address import data_uri_bytes
from mm1.prepare.html.lines import ImageAddress
from mm1.prepare.html.main_content import PageError, main_content
from mm1.prepare.ledger import Dropped, InlineImage, Ledger, MissingImage, Page
from mm1.prepare.readers.warc_records import (
    WITHOUT_HEADER,
    PictureIndex,
    decompress,
    read_body,
    read_responses,
    url_key,
)
from mm1.prepare.shard import InputError, Shard, file_inside

PACKED_PAGES = (b"\x1f\x8b", b"\x78\x01", b"\x78\x9c", b"\x78\xda")
"""How a page begins that is compressed by gzip or by zlib."""

_ICON_WORDS = ("logo", "button", "icon", "plugin", "widget")  # OBELICS, arXiv 2306.16527, appendix A.1.3
_ICON_SIDE = 64  # pixels: icons in running text, buttons and 48 x 48 notes have no side that long
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow knows more, some of which run other programs
_ICON_ADDRESS = "image with a word of icons in its address"
_SITE = "file:///"  # stands for the folder of the pages
_LONGEST_NAME = 2000  # characters of the address of an image that is missing


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
            image_at = partial(_in_folder, shard=shard, page=path)
            pieces = _page_pieces(_unpacked(read_file(file)), url, image_at=image_at)
            _note_replaced(pieces, ledger)
            yield Page(pieces, id=path)


def _unpacked(page: bytes) -> bytes:
    """The page; decompressed if `wget` kept it as the server sent it. Raises Dropped if it breaks off."""
    if not page.startswith(PACKED_PAGES):
        return page
    return decompress(page, "gzip" if page.startswith(PACKED_PAGES[0]) else "deflate")


def _note_replaced(pieces: tuple[Piece, ...], ledger: Ledger) -> None:
    """Counts a page with bytes that its encoding doesn't have."""
    if any(isinstance(piece, Text) and "\ufffd" in piece.text for piece in pieces):
        ledger.skipped["page with bytes that its encoding doesn't have, read as U+FFFD"] += 1


def _page_pieces(content: bytes, url: str, *, image_at: Callable[[str], Image], charset: str = "") -> tuple[Piece, ...]:
    """The page's text and images; `image_at` gives the image at an address.

    Raises:
        Dropped: it has no content.
    """
    try:
        content_pieces = main_content(content, url, charset=charset)
    except PageError as error:
        raise Dropped(str(error)) from None
    if not content_pieces:
        raise Dropped("page without content")
    return tuple(
        _placed(_first_found(piece, image_at), piece) if isinstance(piece, ImageAddress) else piece
        for piece in content_pieces
    )


def _first_found(address: ImageAddress, image_at: Callable[[str], Image]) -> Image:
    """The image at the first of its addresses where there is one; else why there is none at the first."""
    missing: Image | None = None
    for url in (address.url, *address.others):
        image = _embedded(url) if url.startswith("data:") else image_at(url)
        if not isinstance(image, MissingImage):
            return image
        missing = missing or image
    return missing or MissingImage(reason="image without an address")


def _placed(image: Image, address: ImageAddress) -> Image:
    """The image as it stands in its line."""
    if isinstance(image, MissingImage):
        return replace(image, name=address.url[:_LONGEST_NAME], inline=address.inline)
    return InlineImage(image.data) if address.inline else image


def _embedded(url: str) -> Image:
    """The image that a `data:` address holds."""
    data = data_uri_bytes(url)
    return MissingImage(reason="image in the page that cannot be read (data:)") if data is None else _unless_icon(data)


def _in_folder(url: str, shard: Shard, page: str) -> Image:
    """The image of the page `page` of a folder; a `MissingImage` if it is elsewhere or an icon."""
    if is_icon(url):
        return MissingImage(reason=_ICON_ADDRESS, expected=True)
    path = next(filter(None, (file_inside(shard.root, name) for name in _file_names(url, shard.root, page))), None)
    if path is None:
        if urlsplit(url).scheme in ("http", "https"):
            return _fetched_image(url, shard)
        return MissingImage(reason="image that is not in the folder")
    try:
        return _unless_icon(read_file(path))
    except Dropped as dropped:
        return MissingImage(reason=dropped.reason)
    except OSError:
        return MissingImage(reason=CLOSED)


def _file_names(url: str, root: Path, page: str) -> Iterator[str]:
    """The files of a folder in which the picture of an address may be.

    `wget --recursive` keeps a site in a folder of its host's name, and a `?query` in the name of the file.
    """
    parts = urlsplit(url)
    hosts = [host for host in dict.fromkeys((parts.netloc, parts.hostname)) if host]
    folders = [f"{host}/" for host in hosts] + [""] * (not hosts or root.name in hosts)
    if not hosts and "/" in page:
        folders.append(page.partition("/")[0] + "/")
    for folder in folders:
        for path in dict.fromkeys((unquote(parts.path), parts.path)):
            name = folder + path.lstrip("/")
            if parts.query:
                yield f"{name}?{unquote(parts.query)}"
            yield name


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
    """The main content of each HTML response of a WARC file.

    Images that the same file holds are taken from it; others are fetched if that is allowed. Responses that are no
    pages are counted.

    Raises:
        InputError: the file is no WARC, or breaks off.
    """
    path = shard.files[0]
    pictures = PictureIndex.of(path)

    def image_at(url: str) -> Image:
        offset = pictures.offsets.get(pictures.key(url))
        if offset is None or is_icon(url):
            return _fetched_image(url, shard)
        response, record = next(read_responses(path, start=offset), (None, None))
        if response is None or pictures.key(url) not in (url_key(response.url), response.id):
            raise InputError(f"{path.name} is compressed as a whole; `warcio recompress` compresses record by record")
        try:
            return _unless_icon(read_body(record, path))
        except Dropped as dropped:
            return MissingImage(reason=dropped.reason)

    for response, record in read_responses(path):
        if response.kind == "page":
            with ledger.record(response.url):
                body = read_body(record, path)
                pieces = _page_pieces(body, response.url, image_at=image_at, charset=response.charset)
                _note_replaced(pieces, ledger)
                yield Page(pieces, id=response.url, metadata={"url": response.url})
        elif response.kind == "other":
            ledger.skipped[response.why] += 1
            if response.why != WITHOUT_HEADER:
                ledger.expected.add(response.why)

"""Web pages -> documents: a folder of HTML files with their images, and WARC files."""

import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

import PIL.Image

from mm1.document import Document, Image, Piece, Text
from mm1.prepare.fetch import WebError
from mm1.prepare.html.lines import ImageAddress
from mm1.prepare.html.main_content import PageError, main_content
from mm1.prepare.shard import LARGEST_FILE, InputError, Part, inside, read_bounded

_ICON_WORDS = ("logo", "button", "icon", "plugin", "widget")  # OBELICS, arXiv 2306.16527, appendix A.1.3
_ICON_SIDE = 64  # no side that long: signs in the running text, buttons, 48 x 48 notes (as in sample_build/pages.py)
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow knows more, some of which run other programs
_SITE = "file:///"  # the folder of the pages, whatever it is called


def is_icon(url: str) -> bool:
    """Whether an image's address says that it is no content (the words of OBELICS)."""
    place = urlsplit(url).path.lower()
    return any(word in place for word in _ICON_WORDS)


def read_html(part: Part, drops: Counter[str]) -> Iterator[Document]:
    """The main content of each page of a folder, its images read from the folder. Pages without text are counted."""
    for path in part.files:
        place = path.relative_to(part.root).as_posix()
        content = read_bounded(path, drops)
        if content is None:
            continue
        kept = _pieces(content, f"{_SITE}{quote(place)}", drops, image_of=lambda address: _local(address, part, drops))
        if kept:
            yield Document(kept, id=place)


def _pieces(
    content: bytes, base: str, drops: Counter[str], *, image_of: Callable[[ImageAddress], Image | None]
) -> tuple[Piece, ...]:
    """The page's pieces, images in place of their addresses; none, counted, where it has no content.

    Where an image is left out, the line goes on that it was in.
    """
    try:
        found = main_content(content, base)
    except PageError as error:
        drops[str(error)] += 1
        return ()
    pieces: list[Piece] = []
    gone: ImageAddress | None = None
    for piece in found:
        if isinstance(piece, ImageAddress):
            image = image_of(piece)
            gone = piece if image is None else None
            pieces += [] if image is None else [image]
        elif gone is not None and pieces and isinstance(last := pieces[-1], Text):
            joint = f"{last.text.rstrip()} {piece.text.lstrip()}" if gone.inline else last.text + piece.text
            pieces[-1] = Text(joint)
        else:
            pieces.append(piece)
    if not pieces:
        drops["page without content"] += 1
    return tuple(pieces)


def _local(address: ImageAddress, part: Part, drops: Counter[str]) -> Image | None:
    """The image of a page in the folder; None, counted, where it is elsewhere or an icon."""
    parts = urlsplit(address.url)
    if parts.scheme in ("http", "https"):
        return _fetched(address.url, part, drops)
    if is_icon(address.url):
        drops["image with a word of icons in its address"] += 1
        return None
    path = inside(part.root, unquote(parts.path).lstrip("/"))
    if path is None:
        drops["image that is not in the folder"] += 1
        return None
    return _image(read_bounded(path, drops), drops)


def _image(data: bytes | None, drops: Counter[str]) -> Image | None:
    """The image, unless it is missing or, by the size that its header says, an icon."""
    if data is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whether it is too large is decided where it is decoded
            size = PIL.Image.open(io.BytesIO(data), formats=_FORMATS).size
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError):
        return Image(data)
    if max(size) < _ICON_SIDE:
        drops[f"image without a side of {_ICON_SIDE} pixels, an icon"] += 1
        return None
    return Image(data)


def _fetched(url: str, part: Part, drops: Counter[str]) -> Image | None:
    if is_icon(url):
        drops["image with a word of icons in its address"] += 1
        return None
    if part.web is None:
        drops["image by address only, not fetched (fetch=true fetches)"] += 1
        return None
    answer = part.web.fetch_all([url])[0]
    if isinstance(answer, WebError):
        drops[str(answer)] += 1
        return None
    return _image(answer, drops)


def read_warc(part: Part, drops: Counter[str]) -> Iterator[Document]:
    """The main content of each HTML response of a WARC file (https://iipc.github.io/warc-specifications/).

    Images that the same file holds are taken from it; others are fetched where that is allowed.

    Raises:
        InputError: the file is no WARC, or breaks off.
    """
    places = {answer.url: answer.place for answer in _answers(part, Counter(), of="image/")}

    def image_of(address: ImageAddress) -> Image | None:
        if address.url not in places or is_icon(address.url):
            return _fetched(address.url, part, drops)
        held = next(_answers(part, drops, of="image/", start=places[address.url]), None)
        return None if held is None else _image(held.body, drops)

    for answer in _answers(part, drops, of="html"):
        kept = _pieces(answer.body, answer.url, drops, image_of=image_of)
        if kept:
            yield Document(kept, id=answer.url, metadata={"url": answer.url})


@dataclass(frozen=True, slots=True)
class _Answer:
    """A response of a WARC file: `place` is where in the file it starts."""

    url: str
    kind: str
    place: int
    body: bytes


def _answers(part: Part, drops: Counter[str], *, of: str, start: int = 0) -> Iterator[_Answer]:
    """The successful responses from `start` on whose content type has `of` in it; too large ones are counted."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    path, records = part.files[0], 0
    try:
        with path.open("rb") as file:
            file.seek(start)
            for record in ArchiveIterator(file, record_types=WarcRecordType.any_type, parse_http=False):
                records += 1
                if record.record_type != WarcRecordType.response:
                    continue
                record.parse_http(auto_decode="all")
                headers = record.http_headers
                kind = (record.http_content_type or "").lower()
                if headers is None or headers.status_code != 200 or of not in kind:
                    continue
                body = record.reader.read(LARGEST_FILE + 1)
                if len(body) > LARGEST_FILE:
                    drops[f"web page of more than {LARGEST_FILE >> 20} MB"] += 1
                    continue
                coded = headers.get("Content-Encoding") or headers.get("Transfer-Encoding")
                if len(body) < record.content_length and not coded:
                    raise InputError(f"{path.name} breaks off inside {record.headers.get('WARC-Target-URI')}")
                url = record.headers.get("WARC-Target-URI") or ""
                yield _Answer(url, kind, start + record.stream_pos, body)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path.name} is no WARC file, or breaks off: {error}") from error
    if not records and not start:
        raise InputError(f"{path.name} holds no WARC record")

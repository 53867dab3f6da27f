"""The pages of manuals on disk -> documents: the main content, text and images in reading order.

The walk over a page is that of `mm1 prepare`. Special to the manuals are which element holds their content, which boxes
inside it are left out, and that formulas drawn as images are no images.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mm1.document import Document, Image, Piece, Text
from mm1.prepare.html.encoding import decode_page
from mm1.prepare.html.lines import ImageAddress
from mm1.prepare.html.walk import Element, parse, walk
from mm1.prepare.images import PictureError, encode_webp, open_picture, shrink
from sample_build.sources import GIMP, GRASS, LILYPOND, LILYPOND_IMAGES, OPENCV, SCIPY, SKIMAGE, SKLEARN, Source

SIDE = 224
"""Longest side of a page's image in pixels."""

QUALITY = 60
"""WebP quality of a page's image: axes and curves of plots stay legible."""

_SHORT_SIDE, _LONG_SIDE = 40, 64  # pixels: an image with a smaller short or long side is an icon
_REPEATED_SHARE = 0.05  # an image on a larger share of the pages is a logo or an icon
_FEWEST_WORDS = 30
_MOST_IMAGES = 24

_SKIPPED_TAGS = re.compile(
    r"script|style|nav|footer|header|aside|button|noscript|form|svg|math|iframe|object|select|input"
)
_SKIPPED_CLASSES = re.compile(
    r"headerlink|viewcode-link|copybutton|toctree-wrapper|contents|local|toc|sidebar|breadcrumbs|linenos|related"
    r"|prev-next(-area|-bottom)?|navheader|navfooter|nav_table|menu|ttc|dynheader|dyncontent|sk-top-container"
    r"|sphx-glr-(footer|download|download-link-note|thumbcontainer|thumbnails|timing|signature)"
)
_SKIPPED_IDS = re.compile(r"footer|highlighting-settings|tocframe")


@dataclass(frozen=True, slots=True)
class Manual:
    """A tree of HTML pages.

    root     its folder in the package
    pages    a pattern for the paths of the pages that are read
    main     the XPath of the element that holds a page's content
    plain    a pattern for the paths of pages that are kept without any image
    images   another package that holds images at the paths at which the pages look for them
    """

    source: Source
    root: str
    pages: str
    main: str = "//*[@role='main']"
    plain: str = r"$^"
    images: Source | None = None


MANUALS = (
    Manual(
        SKLEARN,
        "usr/share/doc/python-sklearn-doc/html",
        r"^(auto_examples|modules|tutorial|developers)/(?!generated/)|^(faq|glossary)\.html",
        plain=r"",
    ),
    Manual(
        SKIMAGE,
        "usr/share/doc/python-skimage-doc/html",
        r"^(auto_examples|user_guide|api)/|^(install|contribute|core_developer|glossary)\.html",
        plain=r"",
    ),
    Manual(
        SCIPY,
        "usr/share/doc/python-scipy-doc/html",
        r"^(tutorial|reference/generated|dev)/(?!gitwash)",
        plain=r"^(tutorial|dev)/",
    ),
)


LARGER_MANUALS = (
    Manual(GIMP, "usr/share/gimp/2.0/help/en", "", "//body", plain=""),
    Manual(GRASS, "usr/share/doc/grass-doc/html", "", "//*[@id='container']", plain=""),
    Manual(
        LILYPOND,
        "usr/share/doc/lilypond/html/Documentation",
        r"^(notation|learning|extending|usage|essay|snippets|web|music-glossary)/(?!.*\.[a-z]{2}\.html)",
        "//*[@id='main']",
        images=LILYPOND_IMAGES,
    ),
    Manual(
        OPENCV,
        "usr/share/doc/opencv-doc/opencv4/html",
        r"^.*/tutorial_",
        "//div[contains(concat(' ', @class, ' '), ' contents ')]",
        plain="",
    ),
)


def manual_pages(manual: Manual, cache: Path, drops: Counter[str]) -> Iterator[Document]:
    """The pages of a manual that have images, and those of text alone that `manual.plain` matches."""
    root, name = manual.source.folder(cache) / manual.root, manual.source.name
    roots = [root] if manual.images is None else [root, manual.images.folder(cache) / manual.root]
    pages: dict[str, list[Text | Path]] = {}
    for file in sorted(root.rglob("*.html")):
        path = file.relative_to(root).as_posix()
        if not re.match(manual.pages, path):
            continue
        pieces = read_page(file.read_bytes(), path, roots=roots, main=manual.main)
        words = sum(len(piece.text.split()) for piece in pieces if isinstance(piece, Text))
        if words < _FEWEST_WORDS:
            drops[f"{name}: page of fewer than {_FEWEST_WORDS} words"] += 1
            continue
        pages[path] = pieces
    uses = Counter(image for pieces in pages.values() for image in {p for p in pieces if isinstance(p, Path)})
    repeated = {image for image, count in uses.items() if count > max(2, _REPEATED_SHARE * len(pages))}
    for path, pieces in pages.items():
        document = _with_images(pieces, repeated, drops, name=name)
        if not document.images and not re.match(manual.plain, path):
            drops[f"{name}: reference page without an image"] += 1
            continue
        yield Document(document.pieces, id=f"{name}/{path}", source=name, metadata=manual.source.metadata(page=path))


def read_page(content: bytes, path: str, *, roots: Sequence[Path], main: str) -> list[Text | Path]:
    """Text and the files of the images in reading order; empty without main content.

    `path` is the page's path in its root, to which the addresses of its images are relative. An image is looked for in
    each of `roots`; one outside them is left out.
    """
    root = parse(decode_page(content))
    elements = [] if root is None else root.xpath(main)
    if not elements:
        return []

    def image_of(element: Element) -> ImageAddress | None:
        file = None if "math" in _classes(element) else _file(element.get("src", ""), path, roots=roots)
        return None if file is None else ImageAddress(str(file))

    pieces = walk(elements[0], skips=_skips, image_of=image_of)
    return [Path(piece.url) if isinstance(piece, ImageAddress) else piece for piece in pieces]


def _skips(element: Element) -> bool:
    """Whether an element is no content: navigation, scripts, formulas in markup, thumbnails."""
    if _SKIPPED_TAGS.fullmatch(element.tag) or _SKIPPED_IDS.fullmatch(element.get("id", "")):
        return True
    return any(map(_SKIPPED_CLASSES.fullmatch, _classes(element)))


def _classes(element: Element) -> list[str]:
    return element.get("class", "").split()


def _file(address: str, path: str, *, roots: Sequence[Path]) -> Path | None:
    """The file of an image of the page `path`; None where it lies elsewhere or is missing."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc or not parts.path:
        return None
    for root in roots:
        file = (root / path).parent.joinpath(unquote(parts.path)).resolve()
        if file.is_relative_to(root.resolve()) and file.is_file():
            return file
    return None


def _with_images(pieces: list[Text | Path], repeated: set[Path], drops: Counter[str], *, name: str) -> Document:
    """The page with its images decoded, shrunk and encoded; icons and repeated images are left out."""
    kept: list[Piece] = []
    seen: set[Path] = set()
    for piece in pieces:
        if isinstance(piece, Text):
            if kept and isinstance(last := kept[-1], Text):
                kept[-1] = Text(last.text + piece.text)
            else:
                kept.append(piece)
            continue
        try:
            if piece in repeated or piece in seen:
                raise PictureError("image repeated on the page or on many pages")
            if len(seen) == _MOST_IMAGES:
                raise PictureError(f"image after the {_MOST_IMAGES}th of a page")
            image = open_picture(piece.read_bytes())
            if min(image.size) < _SHORT_SIDE or max(image.size) < _LONG_SIDE:
                raise PictureError("icon")
            seen.add(piece)
            kept.append(Image(encode_webp(shrink(image, side=SIDE), quality=QUALITY)))
        except PictureError as error:
            drops[f"{name}: {error}"] += 1
    return Document(tuple(kept))

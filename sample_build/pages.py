"""Web pages on disk -> documents: the main content, text and images in reading order, whitespace kept."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mm1.document import Document, Image, Piece, Text
from mm1.prepare.html.lines import Address, Lines, layout_of
from mm1.prepare.images import PictureError, encode_webp, open_picture, shrink
from sample_build.sources import GIMP, GRASS, LILYPOND, LILYPOND_IMAGES, OPENCV, SCIPY, SKIMAGE, SKLEARN, Source

SIDE = 224
"""Longest side of a page's image in pixels."""

QUALITY = 60
"""WebP quality of a page's image: axes and curves of plots stay legible."""

_SHORTEST, _LONGEST = 40, 64  # an image smaller than this (pixels of short and long side) is an icon
_REPEATED = 0.05  # an image on more of the pages than this is a logo or an icon
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
    """A tree of HTML pages: where it lies in its package, which pages count, where their content is.

    `plain` matches the paths of pages that are worth reading without any image; `beside` is a package that holds
    images at the places where the pages look for them.
    """

    source: Source
    root: str
    pages: str
    main: str = "//*[@role='main']"
    plain: str = r"$^"
    beside: Source | None = None


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
        beside=LILYPOND_IMAGES,
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
    """The pages of a manual: with images, or (where `manual.plain` matches) of text alone."""
    root, name = manual.source.folder(cache) / manual.root, manual.source.name
    roots = [root] if manual.beside is None else [root, manual.beside.folder(cache) / manual.root]
    read: dict[str, list[Piece | Path]] = {}
    for path in sorted(root.rglob("*.html")):
        place = path.relative_to(root).as_posix()
        if not re.match(manual.pages, place):
            continue
        pieces = read_page(path.read_bytes(), place, roots=roots, main=manual.main)
        words = sum(len(piece.text.split()) for piece in pieces if isinstance(piece, Text))
        if words < _FEWEST_WORDS:
            drops[f"{name}: page of fewer than {_FEWEST_WORDS} words"] += 1
            continue
        read[place] = pieces
    users = Counter(image for pieces in read.values() for image in {p for p in pieces if isinstance(p, Path)})
    repeated = {image for image, pages in users.items() if pages > max(2, _REPEATED * len(read))}
    for place, pieces in read.items():
        document = _with_images(pieces, repeated, drops, name=name)
        if not document.images and not re.match(manual.plain, place):
            drops[f"{name}: reference page without an image"] += 1
            continue
        yield Document(document.pieces, id=f"{name}/{place}", source=name, metadata=manual.source.metadata(page=place))


def read_page(content: bytes, place: str, *, roots: Sequence[Path], main: str) -> list[Piece | Path]:
    """Text pieces and the files of the images in reading order; empty without main content.

    `place` is the page's path in its root (its images' addresses are relative to it); an image is looked for in each
    of `roots`, and one that lies outside of them is left out.
    """
    from lxml import etree, html

    parser = html.HTMLParser(remove_comments=True, remove_pis=True, encoding="utf-8")
    try:
        tree = html.document_fromstring(content, parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError):
        return []
    found = tree.xpath(main)
    if not found:
        return []
    page = Lines()
    walker = etree.iterwalk(found[0], events=("start", "end"))
    for event, element in walker:
        if event == "start":
            classes = element.get("class", "").split()
            if element is not found[0] and _skipped(element.tag, classes, element.get("id", "")):
                walker.skip_subtree()
                continue
            if element.tag == "img":
                image = _local(element.get("src", ""), place, roots=roots)
                if image is not None and "math" not in classes:
                    page.image(Address(str(image), said=""))
                continue
            page.open(layout_of(element.tag, classes))
            page.text(element.text or "")
        else:
            page.close(layout_of(element.tag, element.get("class", "").split()))
            if element is not found[0]:
                page.text(element.tail or "")
    return [Path(piece.url) if isinstance(piece, Address) else piece for piece in page.pieces()]


def _skipped(tag: str, classes: Sequence[str], name: str) -> bool:
    """Whether an element is no content: navigation, scripts, formulas as pictures of themselves, thumbnails."""
    if _SKIPPED_TAGS.fullmatch(tag) or _SKIPPED_IDS.fullmatch(name):
        return True
    return any(_SKIPPED_CLASSES.fullmatch(class_) for class_ in classes)


def _local(address: str, place: str, *, roots: Sequence[Path]) -> Path | None:
    parts = urlsplit(address)
    if parts.scheme or parts.netloc or not parts.path:
        return None
    for root in roots:
        path = (root / place).parent.joinpath(unquote(parts.path)).resolve()
        if path.is_relative_to(root.resolve()) and path.is_file():
            return path
    return None


def _with_images(pieces: list[Piece | Path], repeated: set[Path], drops: Counter[str], *, name: str) -> Document:
    """The page with its images decoded, shrunk and encoded; those that don't count are left out."""
    done: list[Piece] = []
    seen: set[Path] = set()
    for piece in pieces:
        if not isinstance(piece, Path):
            if done and isinstance(done[-1], Text) and isinstance(piece, Text):
                done[-1] = Text(done[-1].text + piece.text)
            else:
                done.append(piece)
            continue
        try:
            if piece in repeated or piece in seen:
                raise PictureError("image repeated on the page or on many pages")
            if len(seen) == _MOST_IMAGES:
                raise PictureError(f"image after the {_MOST_IMAGES}th of a page")
            image = open_picture(piece.read_bytes())
            if min(image.size) < _SHORTEST or max(image.size) < _LONGEST:
                raise PictureError("icon")
            seen.add(piece)
            done.append(Image(encode_webp(shrink(image, side=SIDE), quality=QUALITY)))
        except PictureError as error:
            drops[f"{name}: {error}"] += 1
    return Document(tuple(done))

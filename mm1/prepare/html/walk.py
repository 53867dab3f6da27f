"""An HTML element -> its text and its images in reading order: the walk that every extractor of pages shares.

An extractor says with two functions what is special to it: which elements it leaves out, and which images it wants.
"""

from collections.abc import Callable
from typing import Any

from mm1.document import Text
from mm1.prepare.html.lines import ImageAddress, Lines, layout_tag

Element = Any  # lxml has no types
ImageOf = Callable[[Element], ImageAddress | None]
Piece = Text | ImageAddress


def parse(page: str) -> Element | None:
    """The root element of a page; None if nothing can be parsed."""
    from lxml import etree

    parser = etree.HTMLParser(remove_comments=True, remove_pis=True, encoding="utf-8", huge_tree=False)
    try:
        return etree.fromstring(page.replace("\0", "\ufffd").encode("utf-8", "replace"), parser)
    except (etree.LxmlError, ValueError):
        return None


def walk(element: Element, *, skips: Callable[[Element], bool], image_of: ImageOf) -> list[Piece]:
    """The text and the images inside an element, in reading order.

    skips      whether a descendant is left out, with all that is in it
    image_of   the address of an `img` element; None leaves the image out
    """
    lines = Lines()
    _write(element, lines, skips, image_of)
    return lines.pieces()


def _write(element: Element, lines: Lines, skips: Callable[[Element], bool], image_of: ImageOf) -> None:
    lines.text(element.text or "")
    for child in element:
        if not skips(child):
            tag = child.tag
            if tag == "img":
                address = image_of(child)
                if address is not None:
                    lines.image(address)
            else:
                layout = layout_tag(tag, (child.get("class") or "").split())
                lines.open(layout)
                _write(child, lines, skips, image_of)
                lines.close(layout)
        lines.text(child.tail or "")

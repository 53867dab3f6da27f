"""The text and the images of a web page as they are met, in lines and paragraphs."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mm1.document import Text

_SPACES = re.compile(r"\s+")
_PARAGRAPHS = frozenset(
    (
        *("p", "div", "section", "article", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "pre"),
        *("blockquote", "figure"),
    )
)
_ROWS = frozenset(("li", "dt", "dd", "tr", "br", "figcaption", "caption", "hr"))


@dataclass(frozen=True, slots=True)
class Address:
    """An image of a page, by its whole address, with what the page says it shows, and whether it stands in a line."""

    url: str
    said: str
    inline: bool = False


class Lines:
    """Text and images of a page in reading order, being written: knows when a line or a paragraph has ended."""

    def __init__(self) -> None:
        self._done: list[Text | Address] = []
        self._parts: list[str] = []  # of the text since the last image, none of them empty
        self._newlines = 0  # owed before the next text
        self._verbatim = 0
        self._after_text = False  # whether the last image stands behind text of its own line

    def open(self, tag: str) -> None:
        self._newlines = max(self._newlines, _newlines(tag))
        if tag == "pre":
            self._verbatim += 1
        elif tag == "li":
            self._write("- ")
        elif tag in ("td", "th") and self._parts and not self._newlines and not self._parts[-1].endswith("\n"):
            self._write(" | ")

    def close(self, tag: str) -> None:
        if tag == "pre":
            self._verbatim = max(0, self._verbatim - 1)
        self._newlines = max(self._newlines, _newlines(tag))

    def text(self, text: str) -> None:
        if not text:
            return
        text = text.replace("\xa0", " ").replace("\u200b", "").replace("\xad", "")
        if not self._verbatim:
            text = _SPACES.sub(" ", text)
            if self._newlines or not self._parts or self._parts[-1][-1] in " \n":
                text = text.lstrip(" ")
        if text:
            self._write(text)

    def image(self, address: Address) -> None:
        before = any(map(str.strip, self._parts[-2:])) or (self._after_text and not self._parts)
        self._after_text = before and not self._newlines
        self._flush()
        self._done.append(address)
        self._newlines = 0

    def pieces(self) -> list[Text | Address]:
        self._flush()
        return self._done

    def _write(self, text: str) -> None:
        if self._after_text and not self._parts and not self._newlines:
            self._mark_inline()
        self._after_text = False
        if self._newlines and self._parts and not self._is_bullet():
            while self._parts and not (last := self._parts.pop().rstrip(" \n")):
                pass
            self._parts += [last] * bool(last) + ["\n" * self._newlines]
        self._newlines = 0
        if not self._parts and self._done:
            self._parts.append("\n")  # what follows an image starts on its own line
        self._parts.append(text)

    def _is_bullet(self) -> bool:
        """Whether a bullet stands alone in its line: the paragraph after it belongs there."""
        return self._parts[-1] == "- " and (len(self._parts) == 1 or self._parts[-2].endswith("\n"))

    def _mark_inline(self) -> None:
        for place in range(len(self._done) - 1, -1, -1):
            if not isinstance(image := self._done[place], Address):
                break
            self._done[place] = replace(image, inline=True)

    def _flush(self) -> None:
        text = "\n".join([line.rstrip(" \t") for line in "".join(self._parts).split("\n")])
        text = re.sub(r"\n{3,}", "\n\n", text).rstrip("\n")
        if text.strip():
            self._done.append(Text(text + "\n"))
        self._parts = []


def layout_of(tag: str, classes: Sequence[str]) -> str:
    """The tag whose layout an element has: Doxygen writes its listings as <div class="line">."""
    if tag != "div":
        return tag
    return "pre" if "fragment" in classes else "br" if "line" in classes else "div"


def _newlines(tag: str) -> int:
    return 2 if tag in _PARAGRAPHS else 1 if tag in _ROWS else 0

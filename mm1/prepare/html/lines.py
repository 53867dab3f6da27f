"""The text and the images of a web page, laid out in lines and paragraphs as they are met."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mm1.document import Text

_SPACES = re.compile(r"\s+")
_PARAGRAPH_TAGS = frozenset(
    (
        *("p", "div", "section", "article", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "pre"),
        *("blockquote", "figure"),
    )
)
_LINE_TAGS = frozenset(("li", "dt", "dd", "tr", "br", "figcaption", "caption", "hr"))


@dataclass(frozen=True, slots=True)
class ImageAddress:
    """An image of a page: its full address, and whether it stands inside a line of text.

    `others` are further addresses of it, for when there is nothing at the first.
    """

    url: str
    inline: bool = False
    others: tuple[str, ...] = ()


class Lines:
    """Collects the text and the images of a page in reading order, and knows when a line or a paragraph has ended."""

    def __init__(self) -> None:
        self._pieces: list[Text | ImageAddress] = []
        self._strings: list[str] = []  # text since the last image, none of them empty
        self._newlines = 0  # to write before the next text
        self._verbatim = 0  # how many `pre` are open
        self._after_text = False  # whether the last image follows text of its own line

    def open(self, tag: str) -> None:
        """Starts an element: ends the line or the paragraph before it where the tag asks for that."""
        self._newlines = max(self._newlines, _newlines(tag))
        if tag == "pre":
            self._verbatim += 1
        elif tag == "li":
            self._write("- ")
        elif tag in ("td", "th") and self._strings and not self._newlines and not self._strings[-1].endswith("\n"):
            self._write(" | ")

    def close(self, tag: str) -> None:
        """Ends an element."""
        if tag == "pre":
            self._verbatim = max(0, self._verbatim - 1)
        self._newlines = max(self._newlines, _newlines(tag))

    def text(self, text: str) -> None:
        """Adds text; white space is collapsed as a browser does, except inside `pre`."""
        if not text:
            return
        text = text.replace("\xa0", " ").replace("\u200b", "").replace("\xad", "")
        if not self._verbatim:
            text = _SPACES.sub(" ", text)
            if self._newlines or not self._strings or self._strings[-1][-1] in " \n":
                text = text.lstrip(" ")
        if text:
            self._write(text)

    def image(self, address: ImageAddress) -> None:
        """Adds an image."""
        before = any(map(str.strip, self._strings[-2:])) or (self._after_text and not self._strings)
        self._after_text = before and not self._newlines
        self._flush()
        self._pieces.append(address)
        self._newlines = 0

    def pieces(self) -> list[Text | ImageAddress]:
        """All that was added."""
        self._flush()
        return self._pieces

    def _write(self, text: str) -> None:
        if self._after_text and not self._strings and not self._newlines:
            self._mark_inline()
        self._after_text = False
        if self._newlines and self._strings and not self._is_bullet():
            while self._strings and not (last := self._strings.pop().rstrip(" \n")):
                pass
            self._strings += [last] * bool(last) + ["\n" * self._newlines]
        self._newlines = 0
        if not self._strings and self._pieces:
            self._strings.append("\n")  # text after an image starts on its own line
        self._strings.append(text)

    def _is_bullet(self) -> bool:
        """Whether the line holds a bullet only: the paragraph that follows belongs to it."""
        return self._strings[-1] == "- " and (len(self._strings) == 1 or self._strings[-2].endswith("\n"))

    def _mark_inline(self) -> None:
        """Marks the images at the end as inline: text follows them on their line."""
        for index in range(len(self._pieces) - 1, -1, -1):
            if not isinstance(image := self._pieces[index], ImageAddress):
                break
            self._pieces[index] = replace(image, inline=True)

    def _flush(self) -> None:
        text = "\n".join([line.rstrip(" \t") for line in "".join(self._strings).split("\n")])
        text = re.sub(r"\n{3,}", "\n\n", text).rstrip("\n")
        if text.strip():
            self._pieces.append(Text(text + "\n"))
        self._strings = []


def layout_tag(tag: str, classes: Sequence[str]) -> str:
    """The tag whose layout an element has: Doxygen writes its listings as <div class="line">."""
    if tag != "div":
        return tag
    return "pre" if "fragment" in classes else "br" if "line" in classes else "div"


def _newlines(tag: str) -> int:
    return 2 if tag in _PARAGRAPH_TAGS else 1 if tag in _LINE_TAGS else 0

"""Layouts: how words stand on a page. A layout takes as many words as fit and says which text it wrote."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw

from mm1.prepare.rendering.fonts import opened

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Ink:
    """What is written with: the font, its size in pixels, the colour, and the distance of lines in sizes."""

    font: str
    size: int
    colour: Colour
    spacing: float


@dataclass(frozen=True, slots=True)
class Area:
    """A part of a page, in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left


@dataclass(frozen=True, slots=True)
class Written:
    """Lines that were written, the number of words in them, and where the next line begins."""

    lines: tuple[str, ...]
    words: int
    bottom: float


def paragraph(page: Pillow.Image, words: Sequence[str], ink: Ink, chance: np.random.Generator) -> str:
    """One column of lines, from the left."""
    return " ".join(_write(page, words, _inside(page, chance), ink).lines)


def centred(page: Pillow.Image, words: Sequence[str], ink: Ink, chance: np.random.Generator) -> str:
    """Lines in the middle of the page, as on a sign."""
    return " ".join(_write(page, words, _inside(page, chance), ink, anchor=0.5).lines)


def columns(page: Pillow.Image, words: Sequence[str], ink: Ink, chance: np.random.Generator) -> str:
    """Two columns, the left one first."""
    area = _inside(page, chance)
    gap = area.width * chance.uniform(0.04, 0.1)
    middle = (area.left + area.right) / 2
    first = _write(page, words, Area(area.left, area.top, middle - gap / 2, area.bottom), ink)
    rest = words[first.words :]
    second = _write(page, rest, Area(middle + gap / 2, area.top, area.right, area.bottom), ink)
    return " ".join((*first.lines, *second.lines))


def titled(page: Pillow.Image, words: Sequence[str], ink: Ink, chance: np.random.Generator) -> str:
    """A larger line of a few words, then a column."""
    area = _inside(page, chance)
    large = Ink(ink.font, round(ink.size * chance.uniform(1.3, 2)), ink.colour, ink.spacing)
    count = min(len(words), int(chance.integers(1, 6)))
    title = _write(page, words[:count], area, large, anchor=chance.choice((0.0, 0.5)))
    below = Area(area.left, title.bottom + ink.size * 0.5, area.right, area.bottom)
    body = _write(page, words[title.words :], below, ink)
    return "\n".join(filter(None, (" ".join(title.lines), " ".join(body.lines))))


def listed(page: Pillow.Image, words: Sequence[str], ink: Ink, chance: np.random.Generator) -> str:
    """Points with a dash, a line of text each."""
    area = _inside(page, chance)
    points: list[str] = []
    at, top = 0, area.top
    while at < len(words):
        count = int(chance.integers(1, 7))
        point = _write(page, ["-", *words[at : at + count]], Area(area.left, top, area.right, area.bottom), ink)
        if point.words < 2:
            break
        points.append(" ".join(point.lines))
        at, top = at + point.words - 1, point.bottom + ink.size * 0.3
    return "\n".join(points)


LAYOUTS: dict[str, Callable[[Pillow.Image, Sequence[str], Ink, np.random.Generator], str]] = {
    "paragraph": paragraph,
    "centred": centred,
    "columns": columns,
    "titled": titled,
    "listed": listed,
}
"""Each writes the first words on a page and returns the text that stands there, empty if no word fits."""


def _inside(page: Pillow.Image, chance: np.random.Generator) -> Area:
    """The page without its margins; above the text of one page in three there is more space."""
    across, down = (side * chance.uniform(0.03, 0.1) for side in page.size)
    above = page.height * chance.uniform(0, 0.5) if chance.random() < 1 / 3 else 0.0
    return Area(across, down + above, page.width - across, page.height - down)


def _write(page: Pillow.Image, words: Sequence[str], area: Area, ink: Ink, *, anchor: float = 0.0) -> Written:
    """Write lines of as many of the first words as fit the area; `anchor` 0 sets them to the left, 0.5 in the middle.

    A word that is wider than the area ends the text.
    """
    font, draw = opened(ink.font, ink.size), ImageDraw.Draw(page)
    height = ink.size * ink.spacing
    lines: list[str] = []
    top, at = area.top, 0
    while at < len(words) and top + height <= area.bottom:
        line = ""
        while at < len(words) and font.getlength(longer := f"{line} {words[at]}".strip()) <= area.width:
            line, at = longer, at + 1
        if not line:
            break
        left = area.left + anchor * (area.width - font.getlength(line))
        draw.text((left, top), line, fill=ink.colour, font=font)
        lines.append(line)
        top += height
    return Written(tuple(lines), at, top)

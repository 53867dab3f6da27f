"""Fonts to render text with: those that matplotlib brings, and those of the system."""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

from mm1.prepare.shard import InputError

_NEEDED = "".join(map(chr, range(0x21, 0x7F)))
"""A font of text has all printable characters of ASCII."""

_NO_TEXT = re.compile(r"^(cm[a-z]+\d|LastResort|STIX(Non|Siz)|.*(Display|Emoji|Symbol|Math|Icon))", re.IGNORECASE)
"""Fonts that have other glyphs under these characters, or none for reading."""


def find_fonts(folder: str = "") -> tuple[str, ...]:
    """The paths of the fonts of text in a folder; without one, matplotlib's and the system's, each name once.

    They are sorted by the names of their files, so that the same fonts elsewhere have the same order.

    Raises:
        InputError: there is none.
    """
    own = Path(matplotlib.get_data_path()) / "fonts/ttf"
    paths = sorted(Path(folder).rglob("*")) if folder else [*own.iterdir(), *map(Path, font_manager.findSystemFonts())]
    by_name: dict[str, Path] = {}
    for path in paths:
        if path.suffix.lower() in (".ttf", ".otf") and not _NO_TEXT.match(path.name):
            by_name.setdefault(path.name, path)
    fonts = [str(by_name[name]) for name in sorted(by_name) if set(_NEEDED) <= characters(str(by_name[name]))]
    if not fonts:
        raise InputError(f"{folder or own} has no font (.ttf, .otf) with the characters of ASCII")
    return tuple(fonts)


@lru_cache(maxsize=256)
def characters(path: str) -> frozenset[str]:
    """The characters that a font has; none if its file can't be read."""
    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError, ValueError):
        return frozenset()


def first_with(text: str, fonts: Sequence[str]) -> str:
    """The first font that has all characters of the text; if none has, the one that has the most of them."""
    wanted = set(text) - {" ", "\n"}
    return min(fonts, key=lambda path: len(wanted - characters(path)))


@lru_cache(maxsize=64)
def opened(path: str, size: int) -> ImageFont.FreeTypeFont:
    """A font at a size in pixels; glyphs stand one after the other, whatever shaping library is installed.

    Raises:
        InputError: the file is not on this machine.
    """
    try:
        return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise InputError(
            f"cannot open the font {path}: {error}; name a folder that all machines see: fonts="
        ) from error

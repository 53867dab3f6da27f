"""Filters of pictures: each picture of a document is decoded once, kept, shrunk or left out, and fingerprinted."""

import warnings
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import PIL.Image

from mm1.document import Document, Image, Piece, Text
from mm1.prepare.images import PictureError, encode_webp, fingerprint_of, open_picture, shrink
from mm1.prepare.ledger import Dropped, InlineImage, Ledger, MissingImage, Page

OnMissingImage = Literal["auto", "drop", "keep_text"]
"""What becomes of a document with a picture that is left out.

auto        a caption or a chat is left out; a page keeps its text
drop        it is left out
keep_text   it keeps its text
"""

QUALITY = 85
"""WebP quality of a picture that was shrunk."""


@dataclass(frozen=True, slots=True)
class ImageBounds:
    """Which pictures are kept. OBELICS keeps sides of 150 pixels or more, at most 2 to 1.

    https://arxiv.org/abs/2306.16527, section 3.4 and appendix A.1; icons and formulas of manuals are smaller.

    min_side    pixels of the shorter side, at least
    max_aspect  longer side over shorter side, at most
    max_images  pictures of one document, at most
    max_side    pixels of the longer side: a larger picture is shrunk to it; 0 shrinks none
    on_missing  what becomes of a document with a picture that is left out
    """

    min_side: int = 32
    max_aspect: float = 12.0
    max_images: int = 30
    max_side: int = 0
    on_missing: OnMissingImage = "auto"

    def keeps_text(self, document: Document) -> bool:
        """Whether the document's text stays where a picture of it is left out."""
        return self.on_missing == "keep_text" or (self.on_missing == "auto" and isinstance(document, Page))


@dataclass(frozen=True, slots=True)
class Screened:
    """A document with the pictures that were kept, and their 64-bit fingerprints in order.

    `keeps_text` says whether its text stays where a picture of it is left out.
    """

    document: Document
    fingerprints: np.ndarray
    keeps_text: bool = True


def screen(document: Document, bounds: ImageBounds, ledger: Ledger) -> Screened:
    """The document with the pictures that are kept; those left out are counted by their reason.

    A picture is decoded once: to see whether it is whole, to shrink it, and for its fingerprint. Where one is left out,
    the texts around it are joined by a line, or in the line that it stood in.

    Raises:
        Dropped: a picture is left out whose document cannot do without it.
    """
    pieces: list[Piece] = []
    fingerprints: list[int] = []
    gap = ""  # what joins the next text to the one before
    for piece in document.pieces:
        if not isinstance(piece, Image):
            last = pieces[-1] if pieces else None
            joins = gap and isinstance(piece, Text) and isinstance(last, Text) and last.train == piece.train
            pieces[-1:] = [_joined(last, piece, gap)] if joins else [*pieces[-1:], piece]  # type: ignore[arg-type]
            gap = ""
            continue
        try:
            if len(fingerprints) == bounds.max_images:
                raise Dropped(f"picture after the {bounds.max_images}th of a document", expected=True)
            image = _checked(piece, bounds)
            fingerprints.append(fingerprint_of(image))
            pieces.append(_bounded(piece, image, bounds.max_side))
            gap = ""
        except Dropped as dropped:
            ledger.drop_picture(dropped)
            if not bounds.keeps_text(document):
                raise
            gap = " " if isinstance(piece, MissingImage | InlineImage) and _is_inline(piece) else "\n"
    screened = replace(document, pieces=tuple(pieces))
    return Screened(screened, np.array(fingerprints, np.uint64), bounds.keeps_text(document))


def _is_inline(piece: MissingImage | InlineImage) -> bool:
    return isinstance(piece, InlineImage) or piece.inline


def _joined(before: Text, after: Text, gap: str) -> Text:
    """One text of two between which a picture was left out."""
    if gap == " ":
        return Text(f"{before.text.rstrip()} {after.text.lstrip()}", train=before.train)
    needs_line = not before.text.endswith("\n") and not after.text.startswith("\n")
    return Text(before.text + "\n" * needs_line + after.text, train=before.train)


def _bounded(piece: Image, image: PIL.Image.Image, max_side: int) -> Image:
    """The picture, shrunk if its longer side has more than `max_side` pixels."""
    if not max_side or max(image.size) <= max_side:
        return Image(piece.data)
    return Image(encode_webp(shrink(image, side=max_side), quality=QUALITY))


def _checked(piece: Image, bounds: ImageBounds) -> PIL.Image.Image:
    """The decoded picture, if it lies within the bounds.

    Raises:
        Dropped: missing, too small, too long, too large, or not a picture.
    """
    if isinstance(piece, MissingImage):
        raise Dropped(piece.reason, expected=piece.expected, detail=piece.name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # LARGEST_PIXELS is the bound
            image = open_picture(piece.data)
    except PictureError as error:
        raise Dropped(str(error), detail=error.detail) from None
    short, long = sorted(image.size)
    size = f"{image.width} x {image.height}"
    if short < bounds.min_side:
        raise Dropped(f"picture of fewer than {bounds.min_side} pixels", expected=True, detail=size)
    if long > bounds.max_aspect * short:
        raise Dropped(f"picture longer than {bounds.max_aspect:g} to 1", expected=True, detail=size)
    return image

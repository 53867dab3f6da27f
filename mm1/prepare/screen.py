"""Pictures of a document: decoded once, safely, and kept, shrunk or left out; and what they look like."""

import warnings
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import PIL.Image

from mm1.document import Document, Image, Piece, Text
from mm1.prepare.pictures import PictureError, encode_webp, fingerprint, open_picture, shrink

QUALITY = 85
"""WebP quality of a picture that had to be shrunk."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Which pictures count. OBELICS keeps sides of 150 pixels or more, at most 2 to 1.

    https://arxiv.org/abs/2306.16527, section 3.4 and appendix A.1; icons and formulas of manuals are smaller.


    smallest   pixels of the shorter side, at least
    aspect     longer side over shorter side, at most
    a_page     pictures of one document, at most
    side       pixels of the longer side; a larger picture is shrunk to it; 0 leaves all as they are
    """

    smallest: int = 32
    aspect: float = 12.0
    a_page: int = 30
    side: int = 0


def screened(document: Document, bounds: Bounds, drops: Counter[str]) -> Document:
    """The document with the pictures that count; what was left out is counted by its reason."""
    if not document.images:
        return document
    pieces: list[Piece] = []
    kept = 0
    for piece in document.pieces:
        if isinstance(piece, Text) and pieces and isinstance(last := pieces[-1], Text) and last.train == piece.train:
            pieces[-1] = Text(last.text + piece.text, train=piece.train)  # a picture that stood between them is gone
        elif not isinstance(piece, Image):
            pieces.append(piece)
        elif kept == bounds.a_page:
            drops[f"picture after the {bounds.a_page}th of a document"] += 1
        else:
            try:
                pieces.append(Image(_checked(piece.data, bounds)))
                kept += 1
            except PictureError as error:
                drops[str(error)] += 1
    return replace(document, pieces=tuple(pieces))


def _checked(data: bytes, bounds: Bounds) -> bytes:
    """The bytes to be stored.

    Raises:
        PictureError: too small, too long, too large, or not a picture.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # LARGEST_PIXELS is the bound
        image = open_picture(data)
    short, long = sorted(image.size)
    if short < bounds.smallest:
        raise PictureError(f"picture of fewer than {bounds.smallest} pixels")
    if long > bounds.aspect * short:
        raise PictureError(f"picture longer than {bounds.aspect:g} to 1")
    if bounds.side and long > bounds.side:
        return encode_webp(shrink(image, side=bounds.side), quality=QUALITY)
    return data


def looks(document: Document) -> np.ndarray:
    """The 64-bit fingerprints of the document's pictures, in order."""
    return np.array([fingerprint(image.data) for image in document.images], np.uint64)

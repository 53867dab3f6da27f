"""Filters of pictures: each picture of a document is decoded once, kept, shrunk or left out, and fingerprinted."""

import warnings
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import PIL.Image

from mm1.document import Document, Image, Piece, Text
from mm1.prepare.images import PictureError, encode_webp, fingerprint_of, open_picture, shrink

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
    """

    min_side: int = 32
    max_aspect: float = 12.0
    max_images: int = 30
    max_side: int = 0


@dataclass(frozen=True, slots=True)
class Screened:
    """A document with the pictures that were kept, and their 64-bit fingerprints in order."""

    document: Document
    fingerprints: np.ndarray


def screen(document: Document, bounds: ImageBounds, drops: Counter[str]) -> Screened:
    """The document with the pictures that are kept; those left out are counted by their reason.

    A picture is decoded once: to see whether it is whole, to shrink it, and for its fingerprint.
    """
    pieces: list[Piece] = []
    fingerprints: list[int] = []
    for piece in document.pieces:
        if isinstance(piece, Text) and pieces and isinstance(last := pieces[-1], Text) and last.train == piece.train:
            pieces[-1] = Text(last.text + piece.text, train=piece.train)  # the picture between them was left out
        elif not isinstance(piece, Image):
            pieces.append(piece)
        elif len(fingerprints) == bounds.max_images:
            drops[f"picture after the {bounds.max_images}th of a document"] += 1
        else:
            try:
                image = _checked(piece.data, bounds)
                fingerprints.append(fingerprint_of(image))
                too_large = bounds.max_side and max(image.size) > bounds.max_side
                pieces.append(
                    Image(encode_webp(shrink(image, side=bounds.max_side), quality=QUALITY)) if too_large else piece
                )
            except PictureError as error:
                drops[str(error)] += 1
    return Screened(replace(document, pieces=tuple(pieces)), np.array(fingerprints, np.uint64))


def _checked(data: bytes, bounds: ImageBounds) -> PIL.Image.Image:
    """The decoded picture, if it lies within the bounds.

    Raises:
        PictureError: too small, too long, too large, or not a picture.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # LARGEST_PIXELS is the bound
        image = open_picture(data)
    short, long = sorted(image.size)
    if short < bounds.min_side:
        raise PictureError(f"picture of fewer than {bounds.min_side} pixels")
    if long > bounds.max_aspect * short:
        raise PictureError(f"picture longer than {bounds.max_aspect:g} to 1")
    return image

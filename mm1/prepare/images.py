"""Pictures as people publish them: decoded safely, shrunk, encoded for a store, and hashed by how they look."""

import hashlib
import io
from functools import lru_cache

import numpy as np
import PIL.Image

from mm1.data.image import claimed_size, fault_of, flatten, too_many_pixels, upright

LARGEST_PIXELS = 40_000_000
"""A picture of more pixels is refused before it is decoded: a few bytes of PNG can ask for gigabytes."""

IN_HEIC = "picture in HEIC, which is not read; export it as JPEG"


class PictureError(ValueError):
    """A picture that cannot be used; the message is the reason, in a few words, under which it is counted.

    `detail` says what was found.
    """

    def __init__(self, reason: str, *, detail: str = ""):
        super().__init__(reason)
        self.detail = detail


def open_picture(data: bytes) -> PIL.Image.Image:
    """The decoded picture, upright, RGB, transparent parts on white.

    Raises:
        PictureError: not a picture Pillow knows, broken, or larger than `LARGEST_PIXELS`.
    """
    try:
        file = PIL.Image.open(io.BytesIO(data), formats=_formats())
        if file.width * file.height > LARGEST_PIXELS:
            raise _too_many_pixels(file.size)
        return flatten(upright(file, data))
    except PictureError:
        raise
    except PIL.Image.DecompressionBombError as error:  # Pillow has a limit of its own
        raise _too_many_pixels(claimed_size(data)) from error
    except Exception as error:  # on damaged bytes Pillow's readers raise errors of every kind
        raise PictureError(_fault(data), detail=fault_of(error)) from error


def _too_many_pixels(size: tuple[int, int] | None) -> PictureError:
    return PictureError("picture with too many pixels", detail=too_many_pixels(size, most=LARGEST_PIXELS))


def _fault(data: bytes) -> str:
    """Why some bytes are no picture that is read."""
    head = data[:200].lstrip().lower()
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftyphevc") or (head[4:12] == b"ftypmif1" and b"heic" in head[12:64]):
        return IN_HEIC
    if head.startswith((b"<!doctype html", b"<html")):
        return "web page in the place of a picture"
    if head.startswith(b"<") and b"<svg" in data[:2000].lower():
        return "picture in SVG, which is not read"
    return "picture that cannot be decoded"


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """The formats of pictures on the web. Pillow knows more, and starts another program to read EPS."""
    PIL.Image.init()
    return tuple(
        name for name in ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF") if name in PIL.Image.OPEN
    )


def shrink(image: PIL.Image.Image, *, side: int) -> PIL.Image.Image:
    """The picture with its longest side at most `side` pixels; never enlarged."""
    small = image.copy()
    small.thumbnail((side, side), PIL.Image.Resampling.LANCZOS)
    return small


def encode_webp(image: PIL.Image.Image, *, quality: int) -> bytes:
    """WebP bytes without metadata; a quality of 100 means lossless."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=6, lossless=quality == 100)
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    """The identity of stored bytes, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def fingerprint(data: bytes) -> int:
    """The 64-bit perceptual hash of an encoded picture: pictures that look alike differ in few bits.

    Each bit says whether one of the 8x8 lowest frequencies of the discrete cosine transform of the 32x32 grey picture
    lies above their median (pHash; Zauner 2010, https://www.phash.org/docs/pubs/thesis_zauner.pdf).
    """
    with PIL.Image.open(io.BytesIO(data)) as image:
        return fingerprint_of(image)


def fingerprint_of(image: PIL.Image.Image) -> int:
    """The `fingerprint` of a decoded picture."""
    grey = image.convert("L").resize((32, 32), PIL.Image.Resampling.LANCZOS)
    basis = _cosines()
    low = (basis @ np.asarray(grey, dtype=np.float64) @ basis.T).round(6)
    bits = (low > np.median(low)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@lru_cache(maxsize=1)
def _cosines() -> np.ndarray:
    """The first 8 rows of the 32-point type-II cosine transform."""
    return np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(32) + 1) / 64)

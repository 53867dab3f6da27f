"""Bytes -> pixels: decode, flatten, resize. Normalising is the model's, on its own device."""

import io
import struct

import numpy as np
import simplejpeg
from PIL import Image as Pillow

MAX_PIXELS = 64_000_000
"""Larger pictures are refused before they are decoded: a small file can claim 30,000 x 30,000 pixels."""

JPEG = b"\xff\xd8\xff"
"""How every JPEG begins."""


UNREADABLE = (
    *(OSError, ValueError, SyntaxError, RuntimeError, TypeError, LookupError, ArithmeticError, EOFError),
    *(struct.error, Pillow.DecompressionBombError),
)
"""What Pillow's readers raise for damaged bytes: RuntimeError from AVIF, BLP and DDS, TypeError from TIFF, ..."""


class ImageError(ValueError):
    """Bytes that are no readable image, or one that is too large to be decoded safely."""


def load(data: bytes, size: int) -> np.ndarray:
    """RGB pixels, uint8 of shape (3, size, size), squeezed to a square as SigLIP does.

    Transparent pictures are laid on white. JPEGs are decoded at the nearest larger eighth of their
    size, which is up to several times faster and loses nothing at the target size.

    Raises:
        ImageError: corrupt, truncated, unknown or oversized.
    """
    try:
        picture = _jpeg(data, size) or _any(data)
        pixels_YXC = np.asarray(picture.resize((size, size), Pillow.Resampling.BICUBIC, reducing_gap=2.0))
    except ImageError:
        raise
    except UNREADABLE as error:
        raise ImageError(f"not a readable image ({len(data):,} bytes): {error}") from error
    return np.ascontiguousarray(pixels_YXC.transpose(2, 0, 1))


def _jpeg(data: bytes, size: int) -> Pillow.Image | None:
    """The picture of a JPEG, or None for what is none, is CMYK or is damaged: Pillow then decides.

    libjpeg-turbo through simplejpeg scales by any eighth while it decodes, where Pillow's `draft` knows 1/2, 1/4, 1/8.
    """
    if not data.startswith(JPEG):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > MAX_PIXELS or colours not in ("YCbCr", "Gray", "RGB"):
            return None
        return Pillow.fromarray(simplejpeg.decode_jpeg(data, min_height=size, min_width=size))
    except ValueError:
        return None


def _any(data: bytes) -> Pillow.Image:
    """The picture of any format Pillow reads, in RGB."""
    with Pillow.open(io.BytesIO(data)) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ImageError(f"{picture.width} x {picture.height} pixels; at most {MAX_PIXELS:,} are decoded")
        picture.load()
        return _flatten(picture)


def _flatten(picture: Pillow.Image) -> Pillow.Image:
    if picture.mode == "RGB":
        return picture
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        white = Pillow.new("RGBA", layer.size, "white")
        return Pillow.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")

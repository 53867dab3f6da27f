"""Bytes -> pixels: decode, flatten, crop, resize. The model normalises them, on its own device."""

import io
import struct
from collections.abc import Sequence

import numpy as np
import simplejpeg
from PIL import Image as Pillow

from mm1.document import Box

MAX_PIXELS = 64_000_000
"""Larger pictures are refused before they are decoded: a small file can claim 30,000 x 30,000 pixels."""

JPEG = b"\xff\xd8\xff"
"""The first bytes of every JPEG."""

UNREADABLE = (
    *(OSError, ValueError, SyntaxError, RuntimeError, TypeError, LookupError, ArithmeticError, EOFError),
    *(struct.error, Pillow.DecompressionBombError),
)
"""What Pillow's readers raise on damaged bytes: RuntimeError from AVIF, BLP and DDS, TypeError from TIFF, ..."""


class ImageError(ValueError):
    """The bytes are not a readable image, or one that is too large to be decoded safely."""


def size_of(data: bytes) -> tuple[int, int] | None:
    """Width and height of an encoded picture, from its header; None if that is unreadable."""
    try:
        with Pillow.open(io.BytesIO(data)) as picture:
            return picture.size
    except UNREADABLE:
        return None


def load(data: bytes, size: int, *, box: Box | None = None) -> np.ndarray:
    """RGB pixels, uint8 of shape (3, size, size): the picture or its part in `box`, squeezed to a square as in SigLIP.

    Transparent pictures are laid on white.

    Raises:
        ImageError: corrupt, truncated, unknown or oversized, or `box` is not inside the picture.
    """
    return load_boxes(data, size, [box])[0]


def load_boxes(data: bytes, size: int, boxes: Sequence[Box | None]) -> list[np.ndarray]:
    """The pixels of each box of one picture (None: all of it), as `load` gives them, from a single decoding.

    JPEGs are decoded at the smallest multiple of an eighth of their size at which every box still has `size` pixels per
    side. That is up to several times faster and loses nothing at the target size.

    Raises:
        ImageError: as `load`.
    """
    try:
        picture, (width, height) = _jpeg(data, size, boxes) or _any(data)
        return [_squeezed(_cut(picture, box, width=width, height=height), size) for box in boxes]
    except ImageError:
        raise
    except UNREADABLE as error:
        raise ImageError(f"not a readable image ({len(data):,} bytes): {error}") from error


def _squeezed(picture: Pillow.Image, size: int) -> np.ndarray:
    pixels_YXC = np.asarray(picture.resize((size, size), Pillow.Resampling.BICUBIC, reducing_gap=2.0))
    return np.ascontiguousarray(pixels_YXC.transpose(2, 0, 1))


def _cut(picture: Pillow.Image, box: Box | None, *, width: int, height: int) -> Pillow.Image:
    """The part of `picture` in `box`, which counts pixels of the full picture of `width` x `height`."""
    if box is None:
        return picture
    left, top, right, bottom = box
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ImageError(f"the box {box} is not inside a picture of {width} x {height} pixels")
    across, down = picture.width / width, picture.height / height
    return picture.crop((round(left * across), round(top * down), round(right * across), round(bottom * down)))


def _jpeg(data: bytes, size: int, boxes: Sequence[Box | None]) -> tuple[Pillow.Image, tuple[int, int]] | None:
    """A JPEG's picture, and its full width and height; None for what Pillow must read: no JPEG, CMYK, damaged.

    simplejpeg (libjpeg-turbo) scales by any number of eighths while it decodes, Pillow's `draft` by 1/2, 1/4 and 1/8.
    """
    if not data.startswith(JPEG):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > MAX_PIXELS or colours not in ("YCbCr", "Gray", "RGB"):
            return None
        widths = [box[2] - box[0] if box else width for box in boxes]
        heights = [box[3] - box[1] if box else height for box in boxes]
        min_width, min_height = -(-size * width // max(1, min(widths))), -(-size * height // max(1, min(heights)))
        pixels_YXC = simplejpeg.decode_jpeg(data, min_height=min_height, min_width=min_width)
        return Pillow.fromarray(pixels_YXC), (width, height)
    except ValueError:
        return None


def _any(data: bytes) -> tuple[Pillow.Image, tuple[int, int]]:
    """A picture of any format that Pillow reads, in RGB, and its width and height."""
    with Pillow.open(io.BytesIO(data)) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ImageError(f"{picture.width} x {picture.height} pixels; at most {MAX_PIXELS:,} are decoded")
        picture.load()
        return _flatten(picture), picture.size


def _flatten(picture: Pillow.Image) -> Pillow.Image:
    if picture.mode == "RGB":
        return picture
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        white = Pillow.new("RGBA", layer.size, "white")
        return Pillow.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")

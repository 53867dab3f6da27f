"""Bytes -> pixels: decode, turn upright, flatten, resize, cut. The model normalises them, on its own device."""

import io
import struct
from collections.abc import Sequence

import numpy as np
import simplejpeg
from PIL import Image as Pillow

from mm1.document import Box, Cut, Image

MAX_PIXELS = 64_000_000
"""Larger pictures are refused before they are decoded: a small file can claim 30,000 x 30,000 pixels."""

JPEG = b"\xff\xd8\xff"
"""The first bytes of every JPEG."""

UNREADABLE = (
    *(OSError, ValueError, SyntaxError, RuntimeError, TypeError, LookupError, ArithmeticError, EOFError),
    *(struct.error, Pillow.DecompressionBombError),
)
"""What Pillow's readers raise on damaged bytes: RuntimeError from AVIF, BLP and DDS, TypeError from TIFF, ..."""

ORIENTATION = 0x0112
"""The EXIF tag that says how a picture is to be turned; 5 and more exchange width and height."""

TURNS = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}
"""How a picture of each orientation becomes upright (EXIF 2.32, section 4.6.5)."""

_METADATA = (b"Exif\0\0", b"eXIf", b"Raw profile type exif", b"adobe.com/xap", b"adobe.xmp")
"""What precedes EXIF and XMP in JPEG and PNG."""


class ImageError(ValueError):
    """The bytes are not a readable image, or one that is too large to be decoded safely."""


def size_of(data: bytes) -> tuple[int, int] | None:
    """Width and height of an encoded picture, upright, from its header; None if that is unreadable."""
    try:
        with Pillow.open(io.BytesIO(data)) as picture:
            width, height = picture.size
            return (height, width) if orientation(picture, data) >= 5 else (width, height)
    except UNREADABLE:
        return None


def orientation(picture: Pillow.Image, data: bytes) -> int:
    """The EXIF orientation, 1 to 8, of an opened picture of these bytes; 1 where it is missing or unreadable."""
    if picture.format == "TIFF":  # Pillow turns those itself
        return 1
    if picture.format in ("JPEG", "MPO", "PNG") and not any(mark in data for mark in _METADATA):
        return 1  # Pillow would decode a PNG to look behind its pixels
    if picture.width * picture.height > MAX_PIXELS:
        return 1
    try:
        value = picture.getexif().get(ORIENTATION, 1)
    except UNREADABLE:
        return 1
    return value if value in TURNS else 1


def upright(picture: Pillow.Image, data: bytes) -> Pillow.Image:
    """The opened picture of these bytes, decoded and turned as its EXIF orientation says."""
    turn = orientation(picture, data)
    picture.load()
    return picture.transpose(TURNS[turn]) if turn in TURNS else picture


def load(data: bytes, size: int, *, box: Box | None = None) -> np.ndarray:
    """RGB pixels, uint8 of shape (3, size, size): the picture or its part in `box`, squeezed to a square as in SigLIP.

    Transparent pictures are laid on white.

    Raises:
        ImageError: corrupt, truncated, unknown or oversized, or `box` is not inside the picture.
    """
    return load_tiles(Image(data, box), [Cut(((size, size),))], size=size)[0]


def load_tiles(image: Image, cuts: Sequence[Cut], *, size: int) -> list[np.ndarray]:
    """The pixels of the tiles that `cuts` make of one image, as `load` gives them, from a single decoding.

    Every resize is bicubic. JPEGs are decoded at the smallest multiple of an eighth of their size that has as many
    pixels as the largest first resize. That is up to several times faster and loses nothing at the target size.

    Raises:
        ImageError: as `load`.
    """
    first = [cut.sizes[0] for cut in cuts]
    least = max(width for width, _ in first), max(height for _, height in first)
    try:
        picture, whole = _jpeg(image, least) or _any(image.data)
        resized = {(): _part(picture, image.box, whole)}
        return [_pixels(_resized(cut.sizes, resized), cut.corner, size) for cut in cuts]
    except ImageError:
        raise
    except UNREADABLE as error:
        raise ImageError(f"not a readable image ({len(image.data):,} bytes): {error}") from error


def _resized(sizes: tuple[tuple[int, int], ...], done: dict[tuple, Pillow.Image]) -> Pillow.Image:
    """The picture `done[()]` resized to each of `sizes` in turn; `done` keeps what was resized before."""
    if sizes not in done:
        # from its full size, which may be many times larger, whole blocks of pixels are averaged first
        gap = 2.0 if len(sizes) == 1 else None
        before = _resized(sizes[:-1], done)
        done[sizes] = before.resize(sizes[-1], Pillow.Resampling.BICUBIC, reducing_gap=gap)
    return done[sizes]


def _pixels(canvas: Pillow.Image, corner: tuple[int, int], size: int) -> np.ndarray:
    left, top = corner
    pixels_YXC = np.asarray(canvas.crop((left, top, left + size, top + size)))
    return np.ascontiguousarray(pixels_YXC.transpose(2, 0, 1))


def _part(picture: Pillow.Image, box: Box | None, whole: tuple[int, int]) -> Pillow.Image:
    """The part of `picture` in `box`, which counts pixels of the full picture of size `whole`."""
    if box is None:
        return picture
    (left, top, right, bottom), (width, height) = box, whole
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ImageError(f"the box {box} is not inside a picture of {width} x {height} pixels")
    across, down = picture.width / width, picture.height / height
    return picture.crop((round(left * across), round(top * down), round(right * across), round(bottom * down)))


def _jpeg(image: Image, least: tuple[int, int]) -> tuple[Pillow.Image, tuple[int, int]] | None:
    """A JPEG's upright picture, and its full width and height; None for what Pillow must read: no JPEG, CMYK, damaged.

    The image has at least `least` pixels across and down, if it has as many. simplejpeg (libjpeg-turbo) scales by any
    number of eighths while it decodes, Pillow's `draft` by 1/2, 1/4 and 1/8.
    """
    data, box = image.data, image.box
    if not data.startswith(JPEG):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > MAX_PIXELS or colours not in ("YCbCr", "Gray", "RGB"):
            return None
        turn = _orientation_of_jpeg(data)
        whole = (height, width) if turn >= 5 else (width, height)
        part = (max(1, box[2] - box[0]), max(1, box[3] - box[1])) if box else whole
        least_width, least_height = (-(-least[side] * whole[side] // part[side]) for side in (0, 1))
        if turn >= 5:
            least_width, least_height = least_height, least_width
        pixels_YXC = simplejpeg.decode_jpeg(data, min_height=least_height, min_width=least_width)
        picture = Pillow.fromarray(pixels_YXC)
        return picture.transpose(TURNS[turn]) if turn in TURNS else picture, whole
    except ValueError:
        return None


def _orientation_of_jpeg(data: bytes) -> int:
    if not any(mark in data for mark in _METADATA):
        return 1
    try:
        with Pillow.open(io.BytesIO(data)) as picture:
            return orientation(picture, data)
    except UNREADABLE:
        return 1


def _any(data: bytes) -> tuple[Pillow.Image, tuple[int, int]]:
    """A picture of any format that Pillow reads, upright and in RGB, and its width and height."""
    with Pillow.open(io.BytesIO(data)) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ImageError(f"{picture.width} x {picture.height} pixels; at most {MAX_PIXELS:,} are decoded")
        flat = _flatten(upright(picture, data))
        return flat, flat.size


def _flatten(picture: Pillow.Image) -> Pillow.Image:
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8
        return Pillow.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        white = Pillow.new("RGBA", layer.size, "white")
        return Pillow.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")

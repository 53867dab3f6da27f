"""Bytes -> pixels: decode, turn upright, flatten, resize, cut. The model normalises them, on its own device."""

import io
import struct
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import simplejpeg
import torch
from PIL import Image as Pillow
from torch.nn.functional import interpolate

from mm1.document import Box, Image
from mm1.tiling import Cut

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

_WHITES = {"I": (0xFFFF,), "F": (1.0, 255.0, 65535.0)}
"""What white may be in pictures of 32-bit integers (which hold 16-bit scans) and of floats."""

_METADATA = (b"Exif\0\0", b"eXIf", b"Raw profile type exif", b"adobe.com/xap", b"adobe.xmp")
"""What precedes EXIF and XMP in JPEG and PNG."""


class ImageError(ValueError):
    """The bytes are not a readable image, or one that is too large to be decoded safely."""


def size_of(data: bytes) -> tuple[int, int] | None:
    """Width and height of an encoded picture, upright, from its header; None if that is unreadable."""
    if data.startswith(JPEG):
        with suppress(ValueError, IndexError):  # what turbojpeg can't read, or ends within a segment, Pillow may
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            if width * height <= MAX_PIXELS and not _has_metadata(data):
                return width, height
    try:
        with Pillow.open(io.BytesIO(data)) as picture:
            width, height = picture.size
            return (height, width) if orientation(picture, data) >= 5 else (width, height)
    except UNREADABLE:
        return None


def has_too_many_pixels(data: bytes) -> bool:
    """Whether Pillow refuses a picture for the size in its header, of which `size_of` then says nothing."""
    try:
        with Pillow.open(io.BytesIO(data)):
            return False
    except Pillow.DecompressionBombError:
        return True
    except UNREADABLE:
        return False


def claimed_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that a picture's header claims, also where Pillow refuses it for them, but not turned upright.

    Pillow checks the size only after a reader has the header; the readers themselves don't.
    """
    for factory, accept in Pillow.OPEN.values():
        with suppress(*UNREADABLE):
            if accept is not None and accept(data[:16]) is True:
                return factory(io.BytesIO(data), "").size
    return None


def too_many_pixels(size: tuple[int, int] | None, *, most: int) -> str:
    """What is said of a picture of this size, if that is known, where at most so many pixels are decoded."""
    how_many = f"{size[0]:,} x {size[1]:,}" if size else "too many"
    return f"{how_many} pixels; at most {most:,} are decoded"


def fault_of(error: BaseException) -> str:
    """What a reader of Pillow's says of damaged bytes; of unknown ones Pillow only names an object in memory."""
    return "no picture of a known kind" if isinstance(error, Pillow.UnidentifiedImageError) else str(error)


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


def load_tiles(image: Image, cuts: Sequence[Cut], *, size: int, out: np.ndarray | None = None) -> np.ndarray:
    """The pixels of the tiles that `cuts` make of one image, as `load` gives them, from a single decoding.

    uint8 of shape (tiles, 3, size, size). With `out` they are written there, and it comes back.

    Every resize is torch's antialiased bicubic on bytes, within one grey level of Pillow's. JPEGs are decoded at the
    smallest of 1/8, 1/4, 1/2 and all of their size that has as many pixels as the largest first resize. That is up to
    several times faster and loses nothing at the target size.

    Raises:
        ImageError: as `load`.
    """
    tiles_NCYX = np.empty((len(cuts), 3, size, size), np.uint8) if out is None else out
    first = [cut.sizes[0] for cut in cuts]
    least = max(width for width, _ in first), max(height for _, height in first)
    try:
        pixels_YXC, whole = _jpeg(image, least) or _any(image.data)
        part_YXC = np.ascontiguousarray(_part(pixels_YXC, image.box, whole))
        resized = {(): torch.from_numpy(part_YXC).permute(2, 0, 1)}
        for cut, tile_CYX in zip(cuts, torch.from_numpy(tiles_NCYX), strict=True):
            _write_tile(cut, resized, tile_CYX)
        return tiles_NCYX
    except ImageError:
        raise
    except Pillow.DecompressionBombError as error:
        raise ImageError(too_many_pixels(claimed_size(image.data), most=MAX_PIXELS)) from error
    except UNREADABLE as error:
        raise ImageError(f"not a readable image ({len(image.data):,} bytes): {fault_of(error)}") from error


def _resized(sizes: tuple[tuple[int, int], ...], done: dict[tuple, torch.Tensor]) -> torch.Tensor:
    """The pixels `done[()]` resized to each of `sizes` in turn; `done` keeps what was resized before."""
    if sizes not in done:
        done[sizes] = resize(_resized(sizes[:-1], done), *sizes[-1])
    return done[sizes]


def resize(pixels_CYX: torch.Tensor, width: int, height: int, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """The uint8 pixels at another size, antialiased bicubic; within one grey level of Pillow's.

    With `out` they are written there. Pillow 13 takes the cheaper of rows and columns first; where that is columns,
    sharp noise differs by more.
    """
    if pixels_CYX.shape[1:] == (height, width):
        return pixels_CYX if out is None else out.copy_(pixels_CYX)
    if out is None:
        return interpolate(pixels_CYX[None], size=(height, width), mode="bicubic", antialias=True)[0]
    # what `interpolate` calls, which has no `out`
    torch.ops.aten._upsample_bicubic2d_aa.out(pixels_CYX[None], [height, width], False, None, None, out=out[None])
    return out


def _write_tile(cut: Cut, resized: dict[tuple, torch.Tensor], tile_CYX: torch.Tensor) -> None:
    """Write the tile that `cut` makes of the pixels `resized[()]`; `resized` keeps what other tiles need, too.

    A tile may lie outside of its picture, where it is black.
    """
    size = tile_CYX.shape[1]
    if cut.corner == (0, 0) and cut.sizes[-1] == (size, size):  # no other tile is part of this size
        resize(_resized(cut.sizes[:-1], resized), size, size, out=tile_CYX)
        return
    canvas_CYX, (left, top) = _resized(cut.sizes, resized), cut.corner
    shown_CYX = canvas_CYX[:, max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)]
    if shown_CYX.shape[1:] != (size, size):
        tile_CYX.zero_()
    down, across = max(-top, 0), max(-left, 0)
    tile_CYX[:, down : down + shown_CYX.shape[1], across : across + shown_CYX.shape[2]] = shown_CYX


def _part(pixels_YXC: np.ndarray, box: Box | None, whole: tuple[int, int]) -> np.ndarray:
    """The part of the pixels in `box`, which counts pixels of the full picture of size `whole`."""
    if box is None:
        return pixels_YXC
    (left, top, right, bottom), (width, height) = box, whole
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ImageError(f"the box {box} is not inside a picture of {width} x {height} pixels")
    across, down = pixels_YXC.shape[1] / width, pixels_YXC.shape[0] / height
    return pixels_YXC[round(top * down) : round(bottom * down), round(left * across) : round(right * across)]


def _jpeg(image: Image, least: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]] | None:
    """A JPEG's upright pixels YXC, and its full width and height; None for what Pillow must read (CMYK, damaged).

    The image has at least `least` pixels across and down, if it has as many. libjpeg-turbo scales by any number of
    eighths while it decodes, but only halves are vectorized: 6/8 takes 1.7 times as long as the whole.
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
        parts = next((n for n in (8, 4, 2) if height >= n * least_height and width >= n * least_width), 1)
        pixels_YXC = simplejpeg.decode_jpeg(data, min_height=-(-height // parts), min_width=-(-width // parts))
        if turn in TURNS:
            pixels_YXC = np.array(Pillow.fromarray(pixels_YXC).transpose(TURNS[turn]))
        return pixels_YXC, whole
    except ValueError:
        return None


def _orientation_of_jpeg(data: bytes) -> int:
    if not _has_metadata(data):
        return 1
    try:
        with Pillow.open(io.BytesIO(data)) as picture:
            return orientation(picture, data)
    except UNREADABLE:
        return 1


def _has_metadata(data: bytes) -> bool:
    """Whether a JPEG has an APP1 segment (EXIF or XMP) before its pixels (ITU T.81, B.1.1.2)."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1] not in (0xD9, 0xDA):
        if data[at + 1] == 0xE1:
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data[at : at + 1] != b"\xff"  # odd bytes between segments: leave them to Pillow


def _any(data: bytes) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels YXC of a picture of any format that Pillow reads, upright and in RGB, and its width and height."""
    with _open(data) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ImageError(too_many_pixels(picture.size, most=MAX_PIXELS))
        flat = flatten(upright(picture, data))
        return np.array(flat), flat.size


def _open(data: bytes) -> Pillow.Image:
    """The opened picture. Pillow would try its readers one after the other, which costs as much as a small picture."""
    likely = "WEBP" if data[8:12] == b"WEBP" else "PNG" if data.startswith(b"\x89PNG") else None
    if likely is not None:
        with suppress(*UNREADABLE):
            return Pillow.open(io.BytesIO(data), formats=(likely,))
    return Pillow.open(io.BytesIO(data))


def flatten(picture: Pillow.Image) -> Pillow.Image:
    """The picture in RGB: transparent parts on white, more than 8 bits of grey scaled to 8."""
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I;16") or picture.mode in _WHITES:  # Pillow would clip them
        return Pillow.fromarray(_eight_bits(picture)).convert("RGB")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        white = Pillow.new("RGBA", layer.size, "white")
        return Pillow.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")


def _eight_bits(picture: Pillow.Image) -> np.ndarray:
    """Grey levels of 16 bits, 32 bits or floats as bytes.

    Black is 0, and white the first value of `_WHITES` that no pixel exceeds. Values outside of all of them, which
    measurements have, are spread from the smallest to the largest.
    """
    grey_YX = np.asarray(picture)
    if picture.mode.startswith("I;16"):
        return (grey_YX >> 8).astype(np.uint8)
    grey_YX = np.nan_to_num(grey_YX.astype(np.float64), posinf=0.0, neginf=0.0)
    least, most = float(grey_YX.min()), float(grey_YX.max())
    white = next((white for white in _WHITES[picture.mode] if least >= 0 and most <= white), None)
    black, white = (0.0, white) if white else (least, most)
    return ((grey_YX - black) * (255 / (white - black or 1)) + 0.5).clip(0, 255).astype(np.uint8)

"""Pictures as viewers show them: EXIF orientation, 16 bits, odd sizes, and what is refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image as Canvas
from PIL import ImageOps

from mm1.data.image import ImageError, load, load_tiles, resize, size_of
from mm1.data.preview import page_items
from mm1.data.tiles import tiled
from mm1.document import Document, Image
from mm1.prepare.images import open_picture
from mm1.tiling import KINDS, TileSpec

ORIENTATION = 0x0112


def drawn(width: int = 96, height: int = 64) -> Canvas.Image:
    """A smooth picture that looks different however it is turned."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    channels = (255 * x, 255 * y**2, 255 * (x * y) ** 0.5)
    return Canvas.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def encoded(orientation: int, form: str, *, width: int = 96, height: int = 64, mode: str = "RGB") -> bytes:
    file, exif = io.BytesIO(), Canvas.Exif()
    exif[ORIENTATION] = orientation
    options = {"quality": 95} if form in ("JPEG", "WEBP") else {}
    drawn(width, height).convert(mode).save(file, format=form, exif=exif, **options)
    return file.getvalue()


def by_pillow(data: bytes) -> Canvas.Image:
    with Canvas.open(io.BytesIO(data)) as picture:
        return ImageOps.exif_transpose(picture).convert("RGB")


def squeezed(picture: Canvas.Image, size: int, *, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
    part = picture if box is None else picture.crop(box)
    return np.asarray(part.resize((size, size), Canvas.Resampling.BICUBIC)).transpose(2, 0, 1).astype(int)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_pillow_turns_them(orientation, form):
    data = encoded(orientation, form)
    upright = by_pillow(data)
    assert size_of(data) == upright.size == ((64, 96) if orientation >= 5 else (96, 64))
    assert np.abs(load(data, 32) - squeezed(upright, 32)).max() <= 6
    assert np.asarray(open_picture(data)).tolist() == np.asarray(upright).tolist()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2}], ids=str)
def test_a_plain_jpeg_has_the_size_that_pillow_reads(mode, options):
    file = io.BytesIO()
    drawn(97, 61).convert(mode).save(file, format="JPEG", **options)
    data = file.getvalue()
    assert b"Exif" not in data
    assert size_of(data) == Canvas.open(io.BytesIO(data)).size == (97, 61)
    assert size_of(data[:-20]) == (97, 61)  # the header is there
    assert size_of(data[:20]) is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_and_tiles_are_counted_in_the_upright_picture(orientation):
    data = encoded(orientation, "JPEG", width=960, height=320)
    upright = by_pillow(data)
    box = (upright.width // 2, 0, upright.width, upright.height // 3)
    assert np.abs(load(data, 32, box=box) - squeezed(upright, 32, box=box)).max() <= 6
    spec = TileSpec(64, 4, KINDS["internvl"])
    ((picture,),) = [tiled(Document((Image(data),)), spec)]
    rows, columns = picture.tiles[-2].cut.cell
    assert (rows, columns) == ((6, 2) if orientation >= 5 else (2, 6))
    canvas = upright.resize((64 * columns, 64 * rows), Canvas.Resampling.BICUBIC)
    shown = load_tiles(Image(data), [tile.cut for tile in picture.tiles], size=64)
    for tile, pixels in zip(picture.tiles[:-1], shown, strict=False):
        left, top = tile.cut.corner
        expected = squeezed(canvas, 64, box=(left, top, left + 64, top + 64))
        assert np.abs(pixels - expected).mean() < 2


@pytest.mark.parametrize("size", [(336, 336), (40, 640), (700, 30)])
@pytest.mark.parametrize(("width", "height"), [(512, 512), (1024, 768), (300, 900), (40, 50), (1, 300), (2, 2)])
def test_resizing_gives_pillows_pixels_to_one_grey_level(width, height, size):
    coarse = np.random.default_rng(width).integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), np.uint8)
    before = Canvas.fromarray(coarse).resize((width, height), Canvas.Resampling.BICUBIC)
    theirs_YXC = np.asarray(before.resize(size, Canvas.Resampling.BICUBIC)).astype(int)
    ours_CYX = resize(torch.from_numpy(np.array(before)).permute(2, 0, 1), *size)
    difference = np.abs(ours_CYX.permute(1, 2, 0).numpy() - theirs_YXC)
    assert difference.mean() < 0.3
    assert (difference > 1).mean() < 1e-2
    assert difference.max() <= 8  # Pillow 13 takes columns first in portraits that become wider: noise is clipped there


GREYS = np.tile(np.linspace(0, 1, 64), (64, 1))


@pytest.mark.parametrize(
    "pixels",
    [
        (GREYS * 65535).astype(np.uint16),
        (GREYS * 65535).astype(np.int32),
        GREYS.astype(np.float32),
        (GREYS * 255).astype(np.float32),
        (GREYS * 2000 - 1000).astype(np.float32),
    ],
    ids=["16 bits", "32 bits", "float to 1", "float to 255", "measurements"],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_more_than_8_bits_of_grey_are_scaled_by_loader_and_preparation(pixels, orientation):
    file, exif = io.BytesIO(), Canvas.Exif()
    exif[ORIENTATION] = orientation
    Canvas.fromarray(pixels).save(file, "TIFF", exif=exif)
    expected = np.rint(GREYS * 255) if orientation == 1 else np.rot90(np.rint(GREYS * 255), -1)
    for shown in (load(file.getvalue(), 64)[0], np.asarray(open_picture(file.getvalue()))[:, :, 0]):
        assert np.abs(shown.astype(int) - expected).max() <= 1


def test_grey_and_cmyk_jpegs_are_turned_too():
    for mode in ("L", "CMYK"):
        data = encoded(6, "JPEG", mode=mode)
        assert size_of(data) == (64, 96)
        assert np.abs(load(data, 32) - squeezed(by_pillow(data), 32)).max() <= 6


def test_an_orientation_behind_the_pixels_of_a_png_is_found():
    data = encoded(6, "PNG")
    start = data.index(b"eXIf") - 4
    length = struct.unpack(">I", data[start : start + 4])[0] + 12
    chunk, end = data[start : start + length], len(data) - 12
    moved = data[:start] + data[start + length : end] + chunk + data[end:]
    assert size_of(moved) == by_pillow(moved).size == (64, 96)
    assert (load(moved, 32) == load(data, 32)).all()


def test_the_orientation_is_found_behind_other_segments_and_odd_bytes():
    data = encoded(6, "JPEG")
    plain = encoded(1, "JPEG")
    assert size_of(data) == (64, 96)
    comment = b"\xff\xfe" + (2 + 40_000).to_bytes(2, "big") + bytes(40_000)
    for odd in (data[:2] + comment + data[2:], data[:2] + b"\xff" + data[2:]):
        assert (load(odd, 32) == load(data, 32)).all()
    assert (load(plain[:2] + comment + plain[2:], 32) == load(plain, 32)).all()
    for end in range(2, 40):  # header that breaks off
        with pytest.raises(ImageError):
            load(data[:end], 32)


def test_an_orientation_that_means_nothing_leaves_the_picture_as_it_is():
    for wrong in (0, 9, 200):
        data = encoded(wrong, "JPEG")
        assert size_of(data) == (96, 64)
        assert np.abs(load(data, 32) - squeezed(by_pillow(data), 32)).max() <= 6
    data = encoded(6, "JPEG")
    torn = data.replace(b"MM\0*", b"XX\0*").replace(b"II*\0", b"XX*\0")
    assert torn != data
    assert size_of(torn) == (96, 64)
    assert load(torn, 32).shape == (3, 32, 32)


def test_the_page_of_a_document_shows_the_picture_upright():
    plain, turned = (page_items(Document((Image(encoded(n, "PNG")),)))[0].text for n in (1, 6))
    assert plain
    assert plain != turned


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size; its pixels are missing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def png(picture: Canvas.Image, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG", **options)
    return file.getvalue()


@pytest.mark.parametrize("name", KINDS)
def test_every_odd_picture_gives_tiles_or_is_refused_by_name(name):
    spec = TileSpec(32, 4, KINDS[name])
    frames = [Canvas.new("RGB", (50, 40), colour) for colour in ("red", "blue")]
    odd = {
        "1 x 1": png(Canvas.new("RGB", (1, 1), "red")),
        "1 x 10,000": png(Canvas.new("RGB", (1, 10_000), "red")),
        "animated": png(frames[0], save_all=True, append_images=frames[1:]),
        "16 bits": png(Canvas.fromarray(np.full((40, 50), 0x8000, np.uint16))),
    }
    for data in odd.values():
        (picture,) = tiled(Document((Image(data),)), spec)
        shown = load_tiles(Image(data), [tile.cut for tile in picture.tiles], size=32)
        assert {pixels.shape for pixels in shown} == {(3, 32, 32)}
    assert load(odd["animated"], 8)[0].min() == 255  # the first frame
    assert set(load(odd["16 bits"], 8).flatten().tolist()) == {128}
    huge = png_header(20_000, 20_000)
    (picture,) = tiled(Document((Image(huge),)), spec)
    assert len(picture.tiles) == 1
    with pytest.raises(ImageError, match=r"20,000 x 20,000 pixels; at most"):
        load_tiles(Image(huge), [tile.cut for tile in picture.tiles], size=32)
    with pytest.raises(ImageError, match="9,000 x 9,000 pixels; at most 64,000,000 are decoded"):
        load(png_header(9000, 9000), 32)


@pytest.mark.parametrize(("side", "halved"), [(64, False), (75, False), (119, False), (120, True), (200, True)])
def test_a_jpeg_is_decoded_at_a_half_of_its_size_or_whole(side, halved):
    """libjpeg-turbo takes longer for the eighths between than for the whole picture."""
    file = io.BytesIO()
    drawn(side, side).save(file, "JPEG", quality=90)
    whole = simplejpeg.decode_jpeg(file.getvalue())
    exact = resize(torch.from_numpy(whole).permute(2, 0, 1), 60, 60).numpy()
    shown = load(file.getvalue(), 60)
    assert (shown == exact).all() != halved
    assert np.abs(shown.astype(int) - exact).max() <= 8

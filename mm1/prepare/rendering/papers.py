"""Papers that text is written on, and what a camera does to a page: turns, blur, noise, light, JPEG."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image as Pillow
from PIL import ImageFilter

from mm1.prepare.rendering.layouts import Colour


def plain(size: tuple[int, int], colour: Colour, chance: np.random.Generator) -> Pillow.Image:
    """One colour."""
    return Pillow.new("RGB", size, colour)


def shaded(size: tuple[int, int], colour: Colour, chance: np.random.Generator) -> Pillow.Image:
    """Light from one side."""
    across, down = chance.uniform(-24, 24, 2)
    slope_YX = np.linspace(-1, 1, size[1])[:, None] * down + np.linspace(-1, 1, size[0])[None] * across
    return _coloured(slope_YX, colour)


def grainy(size: tuple[int, int], colour: Colour, chance: np.random.Generator) -> Pillow.Image:
    """The grain of paper, fine or coarse."""
    coarse = int(chance.integers(1, 9))
    small = (max(2, size[0] // coarse), max(2, size[1] // coarse))
    noise_YX = chance.normal(0, chance.uniform(2, 9), small[::-1]).astype(np.float32)
    grain = Pillow.fromarray(noise_YX).resize(size, Pillow.Resampling.BICUBIC)
    return _coloured(np.asarray(grain), colour)


def ruled(size: tuple[int, int], colour: Colour, chance: np.random.Generator) -> Pillow.Image:
    """Faint lines across, as of a notebook."""
    distance = int(chance.integers(12, 48))
    rows_Y = np.where(np.arange(size[1]) % distance == distance - 1, -40.0, 0.0)
    return _coloured(np.broadcast_to(rows_Y[:, None], size[::-1]), colour)


PAPERS: dict[str, Callable[[tuple[int, int], Colour, np.random.Generator], Pillow.Image]] = {
    "plain": plain,
    "shaded": shaded,
    "grainy": grainy,
    "ruled": ruled,
}


def colours(chance: np.random.Generator) -> tuple[Colour, Colour]:
    """The colours of paper and ink, which differ enough to be read; one page in six is dark."""
    light = chance.integers(200, 256, 3)
    dark = chance.integers(0, 90, 3)
    paper, ink = (dark, light) if chance.random() < 1 / 6 else (light, dark)
    return _colour(paper), _colour(ink)


def photographed(page: Pillow.Image, paper: Colour, chance: np.random.Generator) -> Pillow.Image:
    """The page as a camera or a scanner shows it; half of the pages keep their pixels."""
    if chance.random() < 0.5:
        return page
    page = _seen_from_aside(page, paper, chance)
    if chance.random() < 0.5:
        page = page.filter(ImageFilter.GaussianBlur(chance.uniform(0, 0.0012) * max(page.size)))
    pixels_YXC = np.asarray(page, np.float32)
    pixels_YXC = (pixels_YXC - 128) * chance.uniform(0.75, 1.1) + 128 + chance.uniform(-16, 16)
    pixels_YXC += chance.normal(0, chance.uniform(0, 6), pixels_YXC.shape).astype(np.float32)
    return Pillow.fromarray(np.clip(pixels_YXC, 0, 255).astype(np.uint8))


def jpeg(page: Pillow.Image, chance: np.random.Generator) -> bytes:
    """The page as a JPEG, of a quality of 60 to 95."""
    file = io.BytesIO()
    page.save(file, "JPEG", quality=int(chance.integers(60, 96)))
    return file.getvalue()


def _seen_from_aside(page: Pillow.Image, paper: Colour, chance: np.random.Generator) -> Pillow.Image:
    """The page with its corners moved inwards, by up to a thirtieth of its sides, and so turned a little."""
    width, height = page.size
    moved = chance.uniform(0, 1 / 30, (4, 2)) * page.size
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
    inwards = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    coefficients = _perspective(corners + inwards * moved, corners)
    transform = Pillow.Transform.PERSPECTIVE
    return page.transform(page.size, transform, coefficients, Pillow.Resampling.BICUBIC, fillcolor=paper)


def _perspective(seen: np.ndarray, flat: np.ndarray) -> tuple[float, ...]:
    """The eight coefficients with which Pillow maps four points of the picture to those of the page."""
    rows = []
    for (x, y), (u, v) in zip(seen, flat, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    return tuple(np.linalg.solve(np.array(rows), flat.reshape(8)).tolist())


def _coloured(grey_YX: np.ndarray, colour: Colour) -> Pillow.Image:
    return Pillow.fromarray(np.clip(grey_YX[..., None] + np.array(colour), 0, 255).astype(np.uint8))


def _colour(values: np.ndarray) -> Colour:
    red, green, blue = (int(value) for value in values)
    return red, green, blue

"""The second look at two pictures whose fingerprints are close: do they show the same, down to a line of text?

64 bits tell a cat from a car, not one invoice from another. Here both pictures are laid on each other at up to 256 x
256 grey pixels. One is moved and scaled until it fits the other, since a copy may be cropped (Lucas and Kanade 1981, as
in Baker and Matthews 2004, https://doi.org/10.1023/B:VISI.0000011205.11775.fd, with two shifts and two scales). What
still differs is measured where it differs most, against the edges that are there: compression blurs edges, another
number sets ink where there was none. docs/prepare.md has the error rates; benchmarks/second_look.py measures them.
"""

from dataclasses import dataclass

import numpy as np
import PIL.Image

from mm1.prepare.images import PictureError, open_picture

DIFFERENCE = 0.75
"""The largest difference of two pictures that show the same.

Variants of photographs stay below 0.45 and different invoices above 1 (`python benchmarks/second_look.py`).
"""

_SIDE, _LEAST = 256, 24  # pixels of the comparison, and of the smallest in which pictures are aligned
_STEPS = 6
_NOISE, _EDGES = 6.0, 0.5  # grey levels that compression changes: anywhere, and as a share of the gradient
_LARGEST_SHIFT, _LARGEST_SCALE = 0.15, 0.2  # beyond these it is another picture
_WORST = 4  # the difference is that of the fourth-worst pixel: one or two may be anything
_UNLIKE = 99.0


@dataclass(frozen=True, slots=True)
class Detail:
    """A picture as the second look sees it: grey levels of at most 512 pixels a side, and its own size."""

    grey: PIL.Image.Image
    size: tuple[int, int]


def detail(data: bytes) -> Detail | None:
    """The detail of an encoded picture; None if it cannot be decoded."""
    try:
        image = open_picture(data)
    except PictureError:
        return None
    size = image.size
    image.thumbnail((2 * _SIDE, 2 * _SIDE), PIL.Image.Resampling.BICUBIC)
    return Detail(image.convert("L"), size)


def difference(one: Detail, other: Detail) -> float:
    """How much two pictures differ where they differ most; copies stay below `DIFFERENCE`."""
    side = max(_LEAST, min(_SIDE, *one.grey.size, *other.grey.size))
    unmoved = _worst(_pixels(one, side), _pixels(other, side), margin=2)
    if unmoved <= DIFFERENCE or one.size == other.size:  # what was cropped has another size
        return unmoved
    warp, before = np.zeros(4), side
    for level in (side // 4, side // 2, side):
        if level < _LEAST:
            continue
        warp[[0, 2]] *= level / before
        before = level
        aligned = _aligned(_pixels(one, level), _pixels(other, level), warp)
        if aligned is None:
            return _UNLIKE
        warp = aligned
    moved = _warped(_pixels(other, side), warp)
    return min(unmoved, _worst(_pixels(one, side), moved, margin=max(2, side * 8 // 100)))


def _pixels(picture: Detail, side: int) -> np.ndarray:
    return np.asarray(picture.grey.resize((side, side), PIL.Image.Resampling.BICUBIC), np.float32)


def _warped(pixels_YX: np.ndarray, warp: np.ndarray) -> np.ndarray:
    """The pixels at x' = warp[0] + (1 + warp[1]) x and y' = warp[2] + (1 + warp[3]) y, counted from the middle."""
    side = len(pixels_YX)
    middle = (side - 1) / 2
    offsets = np.arange(side, dtype=np.float32) - middle
    xs = np.clip(warp[0] + (1 + warp[1]) * offsets + middle, 0, side - 1.001)
    ys = np.clip(warp[2] + (1 + warp[3]) * offsets + middle, 0, side - 1.001)
    columns, rows = xs.astype(int), ys.astype(int)
    right, down = (xs - columns)[None, :], (ys - rows)[:, None]
    lines = pixels_YX[rows] * (1 - down) + pixels_YX[rows + 1] * down
    return lines[:, columns] * (1 - right) + lines[:, columns + 1] * right


def _aligned(target_YX: np.ndarray, pixels_YX: np.ndarray, warp: np.ndarray) -> np.ndarray | None:
    """The warp of the pixels that fits the target best, from `warp` on; None if they don't fit."""
    side = len(target_YX)
    offsets = np.arange(side, dtype=np.float32) - (side - 1) / 2
    inner = slice(2, -2)
    for _ in range(_STEPS):
        moved = _warped(pixels_YX, warp)
        down, right = np.gradient(moved)
        slopes = [right, right * offsets[None, :], down, down * offsets[:, None], np.ones_like(moved), moved]
        jacobian = np.stack([slope[inner, inner].ravel() for slope in slopes], axis=-1)
        rest = (target_YX - moved)[inner, inner].ravel()
        step = np.linalg.lstsq(jacobian.T @ jacobian, jacobian.T @ rest, rcond=None)[0]
        warp = warp + step[:4]  # the last two take up brightness and contrast
        if np.abs(warp[[1, 3]]).max() > _LARGEST_SCALE or np.abs(warp[[0, 2]]).max() > _LARGEST_SHIFT * side:
            return None
    return warp


def _worst(one_YX: np.ndarray, other_YX: np.ndarray, *, margin: int) -> float:
    """The difference where it is largest, against noise and edges; the margin is left out."""
    inner = slice(margin, -margin)
    one_YX, other_YX = one_YX[inner, inner], other_YX[inner, inner]
    down, right = np.gradient(one_YX)
    change = np.abs(_blurred(one_YX - other_YX))
    ratios = (change / (_NOISE + _EDGES * _blurred(np.hypot(down, right)))).ravel()
    return float(np.partition(ratios, -_WORST)[-_WORST])


def _blurred(values_YX: np.ndarray, size: int = 3) -> np.ndarray:
    """The mean of each `size` x `size` pixels."""
    sums = np.cumsum(np.cumsum(np.pad(values_YX.astype(np.float64), ((1, 0), (1, 0))), axis=0), axis=1)
    return (sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]) / size**2

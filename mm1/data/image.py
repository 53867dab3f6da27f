"""Bytes -> pixels: decode, flatten, resize. Normalising is the model's, on its own device."""

import io

import numpy as np
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

MAX_PIXELS = 64_000_000
"""Larger pictures are refused before they are decoded: a small file can claim 30,000 x 30,000 pixels."""


class ImageError(ValueError):
    """Bytes that are no readable image, or one that is too large to be decoded safely."""


def load(data: bytes, size: int) -> np.ndarray:
    """RGB pixels, uint8 of shape (3, size, size), squeezed to a square as SigLIP does.

    Transparent pictures are laid on white. JPEGs are decoded at the nearest larger eighth of their
    size (`draft`), which is up to several times faster and loses nothing at the target size.

    Raises:
        ImageError: corrupt, truncated, unknown or oversized.
    """
    try:
        with Pillow.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ImageError(f"{picture.width} x {picture.height} pixels; at most {MAX_PIXELS:,} are decoded")
            picture.draft("RGB", (size, size))
            flat = _flatten(picture)
            pixels_YXC = np.asarray(flat.resize((size, size), Pillow.Resampling.BICUBIC, reducing_gap=2.0))
    except ImageError:
        raise
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Pillow.DecompressionBombError) as error:
        raise ImageError(f"not a readable image ({len(data):,} bytes): {error}") from error
    return np.ascontiguousarray(pixels_YXC.transpose(2, 0, 1))


def _flatten(picture: Pillow.Image) -> Pillow.Image:
    if picture.mode == "RGB":
        return picture
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        white = Pillow.new("RGBA", layer.size, "white")
        return Pillow.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")

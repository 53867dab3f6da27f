"""Random crops, flips and colours of pictures that are trained on: pure functions of (seed, sequence, picture).

A crop is a box, so it costs no second decoding; what is left of the picture is squeezed to a square as ever.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from mm1.config.run import AugmentConfig
from mm1.data.image import ImageError, size_of
from mm1.document import Image

AUGMENT = 3
"""What is drawn, for the seed; 1 are the decks of a mixture, 2 the order of a source's documents."""

ASPECTS = (3 / 4, 4 / 3)
"""The widest range of a crop's aspect, as a factor on the picture's own: that of Inception's crops, which torchvision
and AIM take."""

GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How the pictures of a run are augmented."""

    config: AugmentConfig
    seed: int

    def draws(self, sequence: int, picture: int) -> np.random.Generator:
        """The random numbers of a picture, by its number in its sequence."""
        return np.random.default_rng((self.seed, AUGMENT, sequence, picture))

    def crop(self, image: Image, draws: np.random.Generator) -> Image:
        """The part of a picture that is shown.

        Raises:
            ImageError: its size can't be read.
        """
        size = image.size or size_of(image.data)
        if size is None:
            raise ImageError(f"not a readable image ({len(image.data):,} bytes): no size")
        left, top, right, bottom = image.box or (0, 0, *size)
        width, height = right - left, bottom - top
        for _ in range(10):
            area = draws.uniform(self.config.min_area, 1)
            aspect = math.exp(draws.uniform(*np.log(ASPECTS)))
            across = max(1, round(width * (area * aspect) ** 0.5))
            down = max(1, round(height * (area / aspect) ** 0.5))
            if across <= width and down <= height:
                x, y = left + draws.integers(width - across + 1), top + draws.integers(height - down + 1)
                return replace(image, box=(int(x), int(y), int(x) + across, int(y) + down))
        return image

    def recolour(self, pixels_CYX: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """uint8 pixels of a tile, mirrored and in other colours."""
        if draws.random() < self.config.flip:
            pixels_CYX = pixels_CYX[:, :, ::-1]
        brightness, contrast, saturation = draws.uniform(1 - self.config.jitter, 1 + self.config.jitter, 3)
        if not self.config.jitter:
            return np.ascontiguousarray(pixels_CYX)
        x_CYX = pixels_CYX.astype(np.float32) * brightness
        mean = np.tensordot(GREY, x_CYX, 1).mean()
        x_CYX = mean + (x_CYX - mean) * contrast
        grey_YX = np.tensordot(GREY, x_CYX, 1)
        x_CYX = grey_YX + (x_CYX - grey_YX) * saturation
        return (x_CYX + 0.5).clip(0, 255).astype(np.uint8)

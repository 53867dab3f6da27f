"""The tiles of a picture: what the encoder sees of it, each tile as one image.

They follow from (width, height, tiling) alone, so that index, packing, training, evaluation and serving agree on them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from mm1.config.model import ModelConfig
from mm1.data.image import size_of
from mm1.document import Box, Image


@dataclass(frozen=True, slots=True)
class TileSpec:
    """The tiles that a model takes: `size` x `size` pixels, `tokens` image tokens each, cut as `KINDS[tiling]` does."""

    size: int
    tokens: int
    tiling: str = "none"

    @property
    def whole(self) -> bool:
        """Whether every picture is one tile, whatever its size."""
        return self.tiling == "none"


def tile_spec(model: ModelConfig) -> TileSpec:
    """The tiles that a model takes."""
    return TileSpec(size=model.vision.image_size, tokens=model.connector.tokens, tiling=model.tiling.kind)


def tiles(width: int, height: int, spec: TileSpec) -> tuple[Box | None, ...]:
    """The boxes of a picture's tiles, in the order of their tokens; None stands for the whole picture."""
    return KINDS[spec.tiling](width, height, spec.size)


def quarters(width: int, height: int) -> tuple[Box, ...]:
    """The boxes of the four quarters of a picture, in reading order.

    All are equally large: where a side is odd, neighbours share its middle pixels.
    """
    across, down = (width + 1) // 2, (height + 1) // 2
    return tuple((left, top, left + across, top + down) for top in (0, height - down) for left in (0, width - across))


def tiled(image: Image, spec: TileSpec) -> tuple[Image, ...]:
    """The image as its tiles. One that is already a part of a picture is a single tile.

    So is a picture whose size cannot be read, which the loader shows as grey.
    """
    if spec.whole or image.box is not None:
        return (image,)
    size = image.size or size_of(image.data)
    return tuple(replace(image, box=box) for box in tiles(*size, spec)) if size else (image,)


def _whole(width: int, height: int, size: int) -> tuple[Box | None, ...]:
    return (None,)


def _overview_and_quarters(width: int, height: int, size: int) -> tuple[Box | None, ...]:
    """The whole picture as an overview, then its four quarters; a picture within one tile has only the overview.

    Source: MM1, section 5.1 (https://arxiv.org/abs/2403.09611): sub-image decomposition.
    """
    return (None,) if width <= size and height <= size else (None, *quarters(width, height))


KINDS: dict[str, Callable[[int, int, int], tuple[Box | None, ...]]] = {
    "none": _whole,
    "mm1": _overview_and_quarters,
}

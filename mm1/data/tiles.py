"""The tiles of a document's pictures, by the config of a model; `tiling.py` says how a picture of a size is cut.

Index, packing, training, evaluation and serving all take them from here, so they agree on them.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from mm1.config.model import ModelConfig
from mm1.data.image import size_of
from mm1.document import Document, Image, Tile
from mm1.tiling import Block, Cut, Size, TileSpec, blocks, shows_tiles, tiles


def tile_spec(model: ModelConfig, *, use: bool = False) -> TileSpec:
    """The tiles that a model takes in training; with `use` those of its use, which may be more.

    Raises:
        ValueError: no number of tiles is allowed, or indicators have no place.
    """
    tiling = model.tiling.resolved
    if use:
        tiling = replace(tiling, max_tiles=max(tiling.max_tiles, tiling.use_max_tiles))
    if tiling.min_tiles > tiling.max_tiles:
        raise ValueError(
            f"model.tiling.min_tiles is {tiling.min_tiles} and model.tiling.max_tiles {tiling.max_tiles}; "
            "lower the first or raise the second"
        )
    if tiling.layout == "rows" and tiling.indicators != "none":
        raise ValueError(
            f"model.tiling.indicators is {tiling.indicators}, but in the layout rows tiles have no place of their own "
            "for text; set model.tiling.indicators=none or model.tiling.layout=tiles"
        )
    return TileSpec(
        model.tiling.pixels or model.vision.image_size,
        model.connector.tokens,
        replace(tiling, use_max_tiles=tiling.max_tiles),
    )


@dataclass(frozen=True, slots=True)
class TiledPicture:
    """The tiles of one picture, its blocks of text and image tokens, and the text after the last."""

    tiles: tuple[Tile, ...]
    blocks: tuple[Block, ...]
    ending: str


def tiled(document: Document, spec: TileSpec) -> list[TiledPicture]:
    """Each picture of a document as its tiles.

    A picture whose size cannot be read, which the loader shows as grey, is a single tile. So is one that is already a
    part of a picture.
    """
    images = document.images
    return [_tiled(image, spec, number=number, images=len(images)) for number, image in enumerate(images)]


def overview(image: Image, spec: TileSpec) -> Tile:
    """The image as the one tile that shows all of it."""
    return Tile(image, tiles(*(_size(image, spec) or (spec.size, spec.size)), spec, full=False)[0])


def _tiled(image: Image, spec: TileSpec, *, number: int, images: int) -> TiledPicture:
    full = shows_tiles(number, images=images, tiling=spec.tiling) if image.in_tiles is None else image.in_tiles
    known = _size(image, spec)
    size = known or (spec.size, spec.size)
    form = _form(size, spec, full=full and image.box is None and known is not None, number=number)
    return TiledPicture(tuple(Tile(image, cut) for cut in form.cuts), form.blocks, form.ending)


class _Form(NamedTuple):
    """The tiles and the text of a picture, whatever it shows."""

    cuts: tuple[Cut, ...]
    blocks: tuple[Block, ...]
    ending: str


@lru_cache(maxsize=256)  # blocks of large pictures list thousands of features
def _form(size: Size, spec: TileSpec, *, full: bool, number: int) -> _Form:
    """The form of picture `number` of a document, if it has this size."""
    cuts = tiles(*size, spec, full=full)
    return _Form(cuts, *blocks(cuts, size, spec, number=number))


def _size(image: Image, spec: TileSpec) -> Size | None:
    """Width and height of an image, None if they are unreadable; they are read only if its tiles depend on them."""
    if image.box is not None:
        left, top, right, bottom = image.box
        return right - left, bottom - top
    return (spec.size, spec.size) if spec.whole else image.size or size_of(image.data)


def quarters(width: int, height: int) -> tuple[tuple[int, int, int, int], ...]:
    """The boxes of the four quarters of a picture, in reading order.

    All are equally large: where a side is odd, neighbours share its middle pixels.
    """
    across, down = (width + 1) // 2, (height + 1) // 2
    return tuple((left, top, left + across, top + down) for top in (0, height - down) for left in (0, width - across))

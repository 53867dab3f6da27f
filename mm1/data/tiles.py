"""The tiles of a picture: what the encoder sees of it, each tile as one image.

They follow from (width, height, tiling) alone, so that index, packing, training, evaluation and serving agree on them.
A tiling is four independent choices: the grid of tiles, how the picture fits it, the order of tiles and overview, and
the text around them. `KINDS` has those of published models.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

from mm1.config.model import Grid, ModelConfig
from mm1.data.image import size_of
from mm1.document import Cut, Document, Image, Tile

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """The choices of `TilingConfig`, all made. The defaults show each picture as one tile."""

    grid: str = "one"
    fit: str = "squeeze"
    order: str = "overview_first"
    indicators: str = "none"
    min_tiles: int = 1
    max_tiles: int = 1
    use_max_tiles: int = 1
    full_images: int | None = None
    max_document_images: int | None = None


KINDS: dict[str, Tiling] = {
    "none": Tiling(),
    # MM1, section 5.1 (https://arxiv.org/abs/2403.09611): sub-image decomposition. It doesn't say the order.
    "mm1": Tiling(grid="quarters", max_tiles=4, use_max_tiles=4),
    # MM1.5 (https://arxiv.org/abs/2409.20566): dynamic image splitting, trained with 9 tiles, used with 16.
    "mm1_5": Tiling(
        grid="padding",
        fit="pad",
        order="overview_last",
        indicators="index",
        min_tiles=4,
        max_tiles=9,
        use_max_tiles=16,
        max_document_images=2,
    ),
    # LLaVA-NeXT (https://llava-vl.github.io/blog/2024-01-30-llava-next/): `anyres`.
    "llava_next": Tiling(grid="pixels", fit="pad_tiles", max_tiles=4, use_max_tiles=4),
    # InternVL 1.5, section 3.3 (https://arxiv.org/abs/2404.16821): `dynamic_preprocess`.
    "internvl": Tiling(grid="nearest_aspect", order="overview_last", max_tiles=12, use_max_tiles=12),
    # Idefics3, section 2.2 (https://arxiv.org/abs/2408.12637), and SmolVLM.
    "idefics3": Tiling(
        grid="longer_side",
        fit="squeeze_twice",
        order="overview_last",
        indicators="row_column",
        max_tiles=16,
        use_max_tiles=16,
    ),
}


@dataclass(frozen=True, slots=True)
class TileSpec:
    """The tiles that a model takes: `size` x `size` pixels, `tokens` image tokens each, cut as `tiling` says."""

    size: int
    tokens: int
    tiling: Tiling = KINDS["none"]

    @property
    def whole(self) -> bool:
        """Whether every picture is one tile without text around it, whatever its size."""
        return self.tiling == KINDS["none"]


def tile_spec(model: ModelConfig, *, use: bool = False) -> TileSpec:
    """The tiles that a model takes in training; with `use` those of its use, which may be more.

    Raises:
        ValueError: no number of tiles is allowed.
    """
    preset, config = KINDS[model.tiling.kind], model.tiling
    values = {field.name: getattr(config, field.name) for field in fields(Tiling)}
    tiling = replace(preset, **{name: value for name, value in values.items() if value is not None})
    if use:
        tiling = replace(tiling, max_tiles=max(tiling.max_tiles, tiling.use_max_tiles))
    if tiling.min_tiles > tiling.max_tiles:
        raise ValueError(
            f"model.tiling.min_tiles is {tiling.min_tiles} and model.tiling.max_tiles {tiling.max_tiles}; "
            "lower the first or raise the second"
        )
    return TileSpec(model.vision.image_size, model.connector.tokens, replace(tiling, use_max_tiles=tiling.max_tiles))


@lru_cache(maxsize=1 << 14)
def tiles(width: int, height: int, spec: TileSpec, *, full: bool = True) -> tuple[Cut, ...]:
    """How the tiles of a picture are cut from it, in the order of their tokens; only an overview unless `full`.

    A picture that fits one tile has no other tiles than its overview.
    """
    tiling = spec.tiling
    grid = GRIDS[tiling.grid](width, height, spec) if full else Grid(1, 1)
    fitted = FITS[tiling.fit](width, height, spec, grid)
    overview = Cut(fitted.overview, _centred(fitted.overview[-1], (spec.size, spec.size)))
    if grid.cells == 1:
        return (overview,)
    left, top = _centred(fitted.sizes[-1], (grid.columns * spec.size, grid.rows * spec.size))
    cuts = [
        Cut(fitted.sizes, (left + column * spec.size, top + row * spec.size), (row + 1, column + 1))
        for row in range(grid.rows)
        for column in range(grid.columns)
    ]
    return tuple(ORDERS[tiling.order](overview, cuts))


@dataclass(frozen=True, slots=True)
class TiledPicture:
    """The tiles of one picture, and the text before each of them and after the last."""

    tiles: tuple[Tile, ...]
    texts: tuple[str, ...]


def tiled(document: Document, spec: TileSpec) -> list[TiledPicture]:
    """Each picture of a document as its tiles.

    A picture whose size cannot be read, which the loader shows as grey, is a single tile. So is one that is already a
    part of a picture.
    """
    images = document.images
    return [_tiled(image, spec, number=number, images=len(images)) for number, image in enumerate(images)]


def overview(image: Image, spec: TileSpec) -> Tile:
    """The image as the one tile that shows all of it."""
    return Tile(image, _cuts(image, spec, full=False)[0])


def _tiled(image: Image, spec: TileSpec, *, number: int, images: int) -> TiledPicture:
    tiling = spec.tiling
    full = image.in_tiles
    if full is None:
        is_last = tiling.full_images is None or number >= images - tiling.full_images
        full = is_last and (tiling.max_document_images is None or images <= tiling.max_document_images)
    cuts = _cuts(image, spec, full=full and image.box is None)
    return TiledPicture(tuple(Tile(image, cut) for cut in cuts), INDICATORS[tiling.indicators](number, cuts))


def _cuts(image: Image, spec: TileSpec, *, full: bool) -> tuple[Cut, ...]:
    """The cuts of an image; the size is read from it only if they depend on it."""
    size: Size | None = (spec.size, spec.size)
    if image.box is not None:
        left, top, right, bottom = image.box
        size = (right - left, bottom - top)
    elif not spec.whole:
        size = image.size or size_of(image.data)
    return tiles(*size, spec, full=full) if size else tiles(spec.size, spec.size, spec, full=False)


def quarters(width: int, height: int) -> tuple[tuple[int, int, int, int], ...]:
    """The boxes of the four quarters of a picture, in reading order.

    All are equally large: where a side is odd, neighbours share its middle pixels.
    """
    across, down = (width + 1) // 2, (height + 1) // 2
    return tuple((left, top, left + across, top + down) for top in (0, height - down) for left in (0, width - across))


def _one(width: int, height: int, spec: TileSpec) -> Grid:
    return Grid(1, 1)


def _quarters(width: int, height: int, spec: TileSpec) -> Grid:
    """2 x 2 for a picture that is larger than a tile."""
    fits = width <= spec.size and height <= spec.size
    return Grid(1, 1) if fits or spec.tiling.max_tiles < 4 else Grid(2, 2)


def _grids(spec: TileSpec) -> list[Grid]:
    """All grids with an allowed number of tiles, the fewest tiles first, then the fewest columns."""
    least, most = spec.tiling.min_tiles, spec.tiling.max_tiles
    grids = [Grid(rows, columns) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)]
    return sorted((grid for grid in grids if grid.cells >= least), key=lambda grid: grid.cells)


def _least_padding(width: int, height: int, spec: TileSpec) -> Grid:
    """The grid that holds all pixels of the picture with the least padding; if none does, the one that loses fewest.

    The first of equals has the fewest tiles.
    """

    def padding(grid: Grid) -> int:
        across, down = _inside(width, height, spec, grid)
        return grid.cells * spec.size**2 - across * down

    def loss(grid: Grid) -> int:
        across, down = _inside(width, height, spec, grid)
        return width * height - across * down

    grids = _grids(spec)
    large = [grid for grid in grids if grid.columns * spec.size >= width and grid.rows * spec.size >= height]
    return min(large, key=padding) if large else min(grids, key=loss)


SHAPES = (Grid(1, 2), Grid(2, 1), Grid(2, 2), Grid(3, 1), Grid(1, 3))
"""LLaVA-NeXT's grids, `image_grid_pinpoints`, in their order."""


def _most_pixels(width: int, height: int, spec: TileSpec) -> Grid:
    """The shape that keeps most of the picture's pixels; of equals the one that wastes the least, then the first."""

    def kept(grid: Grid) -> int:
        scale = min(grid.columns * spec.size / width, grid.rows * spec.size / height)
        return min(int(width * scale) * int(height * scale), width * height)

    shapes = [shape for shape in SHAPES if shape.cells <= spec.tiling.max_tiles] or [Grid(1, 1)]
    return min(shapes, key=lambda grid: (-kept(grid), grid.cells * spec.size**2 - kept(grid)))


def _nearest_aspect(width: int, height: int, spec: TileSpec) -> Grid:
    """The grid with the nearest ratio of width to height; of equals the last one that the picture fills to a half."""
    best, least = Grid(1, 1), math.inf
    for grid in _grids(spec):
        difference = abs(width / height - grid.columns / grid.rows)
        filled = width * height > 0.5 * spec.size**2 * grid.cells
        if difference < least or (difference == least and filled):
            best, least = grid, difference
    return best


def _longer_side(width: int, height: int, spec: TileSpec) -> Grid:
    """As many tiles along the longer side as a square of `max_tiles` has, and as many along the other as it needs."""
    across, down = _scaled_up(width, height, spec)
    aspect = across / down
    if across >= down:
        columns = math.ceil(across / spec.size)
        return Grid(math.ceil(int(columns * spec.size / aspect) / spec.size) or 1, columns)
    rows = math.ceil(down / spec.size)
    return Grid(rows, math.ceil(int(rows * spec.size * aspect) / spec.size) or 1)


def _scaled_up(width: int, height: int, spec: TileSpec) -> Size:
    """The size of the picture when its longer side has all its tiles; the other side is even."""
    longest = math.isqrt(spec.tiling.max_tiles) * spec.size
    aspect = width / height
    if width >= height:
        down = int(longest / aspect)
        return longest, max(1, down + down % 2)
    across = int(longest * aspect)
    return max(1, across + across % 2), longest


@dataclass(frozen=True, slots=True)
class _Fitted:
    """The sizes that a picture is resized to, one after the other, for its tiles and for its overview."""

    sizes: tuple[Size, ...]
    overview: tuple[Size, ...]


def _squeeze(width: int, height: int, spec: TileSpec, grid: Grid) -> _Fitted:
    return _Fitted(((grid.columns * spec.size, grid.rows * spec.size),), ((spec.size, spec.size),))


def _pad(width: int, height: int, spec: TileSpec, grid: Grid) -> _Fitted:
    return _Fitted((_inside(width, height, spec, grid),), (_inside(width, height, spec, Grid(1, 1)),))


def _pad_tiles(width: int, height: int, spec: TileSpec, grid: Grid) -> _Fitted:
    return _Fitted((_inside(width, height, spec, grid),), ((spec.size, spec.size),))


def _squeeze_twice(width: int, height: int, spec: TileSpec, grid: Grid) -> _Fitted:
    sizes = (_scaled_up(width, height, spec), (grid.columns * spec.size, grid.rows * spec.size))
    return _Fitted(sizes, (*sizes, (spec.size, spec.size)))


def _inside(width: int, height: int, spec: TileSpec, grid: Grid) -> Size:
    """The size of the picture when it is as large as the grid allows and keeps its aspect."""
    across, down = grid.columns * spec.size, grid.rows * spec.size
    if across / width < down / height:
        return across, min(math.ceil(height * (across / width)), down)
    return min(math.ceil(width * (down / height)), across), down


def _centred(size: Size, canvas: Size) -> Size:
    """The corner of a canvas as a picture in its middle counts pixels: 0 or less."""
    return -((canvas[0] - size[0]) // 2), -((canvas[1] - size[1]) // 2)


def _overview_first(overview: Cut, cuts: Sequence[Cut]) -> list[Cut]:
    return [overview, *cuts]


def _overview_last(overview: Cut, cuts: Sequence[Cut]) -> list[Cut]:
    return [*cuts, overview]


def _no_text(number: int, cuts: Sequence[Cut]) -> tuple[str, ...]:
    return ("",) * (len(cuts) + 1)


def _index(number: int, cuts: Sequence[Cut]) -> tuple[str, ...]:
    """MM1.5's `(k, i, j)`: the number of the picture from 0, row and column of the tile from 1, 0 for the overview."""
    return (*(f"({number}, {cut.cell[0]}, {cut.cell[1]})" for cut in cuts), "")


AROUND = "<fake_token_around_image>"
"""Idefics3's token before and after every image."""


def _row_column(number: int, cuts: Sequence[Cut]) -> tuple[str, ...]:
    """Idefics3's tokens: the name of each tile, a new line after each row, an empty line before the overview."""
    texts, row = [], 0
    for cut in cuts:
        row_ended = "\n" if row and cut.cell[0] != row else ""
        row = cut.cell[0]
        if row:
            texts.append(f"{row_ended}{AROUND}<row_{row}_col_{cut.cell[1]}>")
        else:
            texts.append(f"{row_ended}{chr(10) if texts else ''}{AROUND}<global-img>")
    return (*texts, f"{chr(10) if row else ''}{AROUND}")


GRIDS: dict[str, Callable[[int, int, TileSpec], Grid]] = {
    "one": _one,
    "quarters": _quarters,
    "padding": _least_padding,
    "pixels": _most_pixels,
    "nearest_aspect": _nearest_aspect,
    "longer_side": _longer_side,
}
FITS: dict[str, Callable[[int, int, TileSpec, Grid], _Fitted]] = {
    "squeeze": _squeeze,
    "pad": _pad,
    "pad_tiles": _pad_tiles,
    "squeeze_twice": _squeeze_twice,
}
ORDERS: dict[str, Callable[[Cut, Sequence[Cut]], list[Cut]]] = {
    "overview_first": _overview_first,
    "overview_last": _overview_last,
}
INDICATORS: dict[str, Callable[[int, Sequence[Cut]], tuple[str, ...]]] = {
    "none": _no_text,
    "index": _index,
    "row_column": _row_column,
}

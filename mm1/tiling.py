"""The tiles of a picture of (width, height): what the encoder sees of it, each tile as one image. Pure functions.

A tiling is independent choices: the grid of tiles, how the picture fits it, the order of tiles and overview, the text
around them, and the order of their image tokens. `KINDS` has those of published models. An export holds this file, so
that its processor cuts pictures as the run did: it must not import anything of the package.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple


class Grid(NamedTuple):
    """Rows and columns of a picture's tiles, or of the patches or image tokens of one tile, numbered row by row."""

    rows: int
    columns: int

    @property
    def cells(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True, slots=True)
class Cut:
    """How a tile is made of its picture.

    The picture is resized to each of `sizes` (width, height) in turn. The tile is the square of the last whose left top
    corner is `corner`; what lies outside of it is black. `cell` is the tile's row and column among the tiles of its
    picture, from 1; (0, 0) is the overview, which shows the whole picture.
    """

    sizes: tuple[tuple[int, int], ...]
    corner: tuple[int, int] = (0, 0)
    cell: tuple[int, int] = (0, 0)


Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """The choices of `TilingConfig`, all made. The defaults show each picture as one tile."""

    grid: str = "one"
    fit: str = "squeeze"
    order: str = "overview_first"
    indicators: str = "none"
    layout: str = "tiles"
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
    # LLaVA-NeXT (https://llava-vl.github.io/blog/2024-01-30-llava-next/): `anyres` with `spatial_unpad`.
    "llava_next": Tiling(grid="pixels", fit="pad_tiles", layout="rows", max_tiles=4, use_max_tiles=4),
    # LLaVA-OneVision (https://arxiv.org/abs/2408.03326): `anyres_max_9`, up to the size from which it shrinks features.
    "llava_onevision": Tiling(
        grid="pixels_of_36",
        fit="pad_tiles",
        order="overview_first_always",
        layout="rows",
        max_tiles=10,
        use_max_tiles=10,
        max_document_images=1,
    ),
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

    @property
    def in_order(self) -> bool:
        """Whether the image tokens of a picture take the features of its tiles one after the other, each once."""
        return self.tiling.layout == "tiles"

    @property
    def features(self) -> int:
        """The features of a tile: one for each of its tokens and, in the layout `rows`, the end of a row."""
        return self.tokens + (not self.in_order)


@lru_cache(maxsize=1 << 14)
def tiles(width: int, height: int, spec: TileSpec, *, full: bool = True) -> tuple[Cut, ...]:
    """How the tiles of a picture are cut from it, in the order of their tokens; only an overview unless `full`.

    By most orders a picture that fits one tile has no other tiles than its overview.
    """
    tiling = spec.tiling
    grid = GRIDS[tiling.grid](width, height, spec) if full else Grid(1, 1)
    fitted = FITS[tiling.fit](width, height, spec, grid)
    overview = Cut(fitted.overview, _centred(fitted.overview[-1], (spec.size, spec.size)))
    if not full:
        return (overview,)
    left, top = _centred(fitted.sizes[-1], (grid.columns * spec.size, grid.rows * spec.size))
    cuts = [
        Cut(fitted.sizes, (left + column * spec.size, top + row * spec.size), (row + 1, column + 1))
        for row in range(grid.rows)
        for column in range(grid.columns)
    ]
    return tuple(ORDERS[tiling.order](overview, cuts))


def shows_tiles(number: int, *, images: int, tiling: Tiling) -> bool:
    """Whether picture `number` of a document of so many images is cut into tiles, not shown as an overview alone."""
    is_last = tiling.full_images is None or number >= images - tiling.full_images
    return is_last and (tiling.max_document_images is None or images <= tiling.max_document_images)


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a picture's positions: a text, and the image tokens after it.

    `features` has for each of these the number of its feature: those of the picture's first tile are the first
    `TileSpec.features`, and so on.
    """

    text: str
    features: Sequence[int]


def blocks(cuts: Sequence[Cut], size: Size, spec: TileSpec, *, number: int) -> tuple[tuple[Block, ...], str]:
    """The positions of a picture of this size with these tiles, and the text after it; it is picture `number`."""
    features = LAYOUTS[spec.tiling.layout](cuts, size, spec)
    *texts, ending = INDICATORS[spec.tiling.indicators](number, cuts)
    return tuple(Block(text, part) for text, part in zip(texts, features, strict=False)), ending


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


SHAPES_OF_36 = tuple(Grid(rows, columns) for rows in range(1, 7) for columns in range(1, 7))
"""LLaVA-OneVision's."""


def _most_pixels(width: int, height: int, spec: TileSpec, shapes: Sequence[Grid] = SHAPES) -> Grid:
    """The shape that keeps most of the picture's pixels; of equals the one that wastes the least, then the first."""

    def kept(grid: Grid) -> int:
        scale = min(grid.columns * spec.size / width, grid.rows * spec.size / height)
        return min(int(width * scale) * int(height * scale), width * height)

    shapes = [shape for shape in shapes if shape.cells <= spec.tiling.max_tiles] or [Grid(1, 1)]
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
    return [overview, *cuts] if len(cuts) > 1 else [overview]


def _overview_last(overview: Cut, cuts: Sequence[Cut]) -> list[Cut]:
    return [*cuts, overview] if len(cuts) > 1 else [overview]


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


def _start_end(number: int, cuts: Sequence[Cut]) -> tuple[str, ...]:
    """InternVL's tokens before and after the tiles of a picture."""
    return ("<img>", *[""] * (len(cuts) - 1), "</img>")


def _by_tile(cuts: Sequence[Cut], size: Size, spec: TileSpec) -> list[Sequence[int]]:
    return [range(number * spec.tokens, (number + 1) * spec.tokens) for number in range(len(cuts))]


def _by_row(cuts: Sequence[Cut], size: Size, spec: TileSpec) -> list[Sequence[int]]:
    """The overview, and the rows of all tiles together, without padding; after each row, and a lone overview, its end.

    LLaVA-NeXT's `spatial_unpad` (https://llava-vl.github.io/blog/2024-01-30-llava-next/).
    """
    side, end = math.isqrt(spec.tokens), spec.tokens  # of the first tile; those of the others are the same
    first = {cut.cell: number * spec.features for number, cut in enumerate(cuts)}
    overview = [*range(first[0, 0], first[0, 0] + spec.tokens)]
    if len(cuts) == 1:
        return [[*overview, end]]
    grid = Grid(*max(first))
    canvas = Grid(grid.rows * side, grid.columns * side)
    above, left = _padding(cuts, size, spec, canvas)
    rows: list[int] = []
    for row in range(above, canvas.rows - above):
        starts = [first[row // side + 1, column + 1] + row % side * side for column in range(grid.columns)]
        whole = [feature for start in starts for feature in range(start, start + side)]
        rows += [*whole[left : canvas.columns - left], end]
    return [overview, rows] if cuts[0].cell == (0, 0) else [rows, overview]


def _padding(cuts: Sequence[Cut], size: Size, spec: TileSpec, canvas: Grid) -> tuple[int, int]:
    """The rows above the picture, and the columns left of it, that hold nothing of it; as many are below and right."""
    (width, height), fitted = size, next(cut for cut in cuts if cut.cell != (0, 0)).sizes[-1]
    side = math.isqrt(spec.tokens)
    if fitted == (canvas.columns // side * spec.size, canvas.rows // side * spec.size):
        return 0, 0
    if width / height > canvas.columns / canvas.rows:
        return (canvas.rows - int(round(height * (canvas.columns / width), 7))) // 2, 0
    return 0, (canvas.columns - int(round(width * (canvas.rows / height), 7))) // 2


GRIDS: dict[str, Callable[[int, int, TileSpec], Grid]] = {
    "one": lambda width, height, spec: Grid(1, 1),
    "quarters": _quarters,
    "padding": _least_padding,
    "pixels": _most_pixels,
    "pixels_of_36": partial(_most_pixels, shapes=SHAPES_OF_36),
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
    "overview_first_always": lambda overview, cuts: [overview, *cuts],
}
INDICATORS: dict[str, Callable[[int, Sequence[Cut]], tuple[str, ...]]] = {
    "none": _no_text,
    "index": _index,
    "row_column": _row_column,
    "start_end": _start_end,
}
LAYOUTS: dict[str, Callable[[Sequence[Cut], Size, TileSpec], list[Sequence[int]]]] = {
    "tiles": _by_tile,
    "rows": _by_row,
}

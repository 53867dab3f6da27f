"""The forms a piece of data takes on its way to the model, and the legend of shape letters.

Captions, interleaved pages, plain text, chats, few-shot prompts and chat requests are all a
`Document`. `data/encode.py` turns one into an `Encoded`; packed sequences of those make a `Batch`.

Shape letters, for every tensor name in the project:

    B  sequences of a micro-batch   T  positions of a sequence
    D  width of the decoder         V  vocabulary
    H  query heads                  K  key/value heads
    N  tiles of a micro-batch       P  patches of a tile, S its image tokens
    E  width of the vision encoder  C  colour channels (or channels of a feature map)
    Y  X  rows and columns of a pixel grid or a patch grid
    M  documents of a micro-batch   F  width of a feed-forward layer
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch

from mm1.tiling import Cut

IGNORED = -100
"""The target of a position that is not trained: padding, image tokens, prompts."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text. `train` says whether the model learns to write it or only reads it.

    `ids` are its tokens if the store holds them for the tokenizer in use; else it is tokenized when it is encoded.
    """

    text: str
    train: bool = True
    ids: list[int] | None = field(default=None, compare=False, repr=False)


Box = tuple[int, int, int, int]
"""Left, top, right and bottom of a part of a picture, in pixels of the upright picture; right and bottom excluded."""


@dataclass(frozen=True, slots=True)
class Image:
    """A picture, or the part of one in `box`: encoded bytes (JPEG, PNG or WebP), undecoded until a worker needs them.

    Pixels are counted in the picture as viewers show it, turned as its EXIF data say. `in_tiles` decides whether the
    model's tiling cuts it (True) or shows an overview of it (False); None leaves that to the tiling.
    """

    data: bytes
    box: Box | None = None  # None: the whole picture
    size: tuple[int, int] | None = field(default=None, compare=False, repr=False)  # width and height, if known
    in_tiles: bool | None = None


@dataclass(frozen=True, slots=True)
class Tile:
    """What the encoder sees at once: an image and how the tile is cut from it."""

    image: Image
    cut: Cut


@dataclass(frozen=True, slots=True)
class Mark:
    """A special token by its name (`user`, `assistant`, `end`). Text can never spell one."""

    name: str
    train: bool = False


Piece = Text | Image | Mark


@dataclass(frozen=True, slots=True)
class Document:
    """Text and images in reading order, and where they come from.

    `metadata` (licence, attribution, language of the caption, ...) stays with the document and never reaches the model.
    """

    pieces: tuple[Piece, ...]
    id: str = ""
    source: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(piece for piece in self.pieces if isinstance(piece, Image))

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces if isinstance(piece, Text))


@dataclass(frozen=True, slots=True)
class Encoded:
    """A document as token ids.

    `tokens` (int32, one per position) has the image token wherever an image feature goes; `train` (bool, same length)
    marks the tokens that the model learns to predict; `images` are the tiles in the order of their tokens, and
    `pictures` (same length) says by a number which picture of the document each tile belongs to. `extents` are the
    positions [start, stop) of each picture, with the text around its tiles; a part of a document has none.
    `starts` are the positions from which on each tile is needed. `features` (int32, same length as `tokens`) has for
    each image token the number of its feature among those of all tiles (`TileSpec.features` each); None if image tokens
    take them in order.
    """

    tokens: np.ndarray
    train: np.ndarray
    images: tuple[Tile, ...]
    pictures: tuple[int, ...]
    extents: tuple[tuple[int, int], ...] = ()
    starts: tuple[int, ...] = ()
    features: np.ndarray | None = None

    def part(self, start: int, stop: int, *, features: int) -> "Encoded":
        """The positions [start, stop), with their tiles, of `features` each. They must not begin or end inside one."""
        if start == 0 and stop == len(self.tokens):
            return self
        tiles = slice(bisect_left(self.starts, start), bisect_left(self.starts, stop))
        return Encoded(
            self.tokens[start:stop],
            self.train[start:stop],
            self.images[tiles],
            self.pictures[tiles],
            starts=tuple(position - start for position in self.starts[tiles]),
            features=None if self.features is None else self.features[start:stop] - tiles.start * features,
        )

    def untrained(self) -> "Encoded":
        """What the model only reads, without the tokens that it learns to write."""
        kept = ~self.train
        features = None if self.features is None else self.features[kept]
        return replace(self, tokens=self.tokens[kept], train=self.train[kept], features=features)


@dataclass(slots=True)
class Batch:
    """Packed sequences of one source or of several, ready for the model.

    tokens_BT    int64   the token of each position; the image token where an image feature goes; 0 in padding
    targets_BT   int64   the next token where it is trained, else `IGNORED`
    document_BT  int64   1, 2, ... for the documents of a sequence in order; 0 in padding
    position_BT  int64   position within its document, from 0
    images_NCYX  uint8   RGB pixels of the tiles in the order of their tokens, then black padding tiles
    images       int     how many of the N are real
    source_B     int64   the source of each sequence (index into the run's sources)
    sequence_B   int64   the number of each sequence in the run: with the seed, what an objective draws by
    broken       names   the pictures that could not be decoded and are grey instead
    feature_BT   int64   the feature of each image token among those of all tiles; none if they are taken in order
    features     int     the features of each tile, where `feature_BT` numbers them
    trained_R    int64   the trained positions of the flat batch, if they are counted already: on a GPU that waits for
                         all work before it
    """

    tokens_BT: torch.Tensor
    targets_BT: torch.Tensor
    document_BT: torch.Tensor
    position_BT: torch.Tensor
    images_NCYX: torch.Tensor
    images: int
    source_B: torch.Tensor
    sequence_B: torch.Tensor
    broken: tuple[str, ...] = ()
    feature_BT: torch.Tensor | None = None
    features: int = 0
    trained_R: torch.Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`; copies from pinned memory do not block."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory (torch's DataLoader calls this where there is a GPU)."""
        return self.map(torch.Tensor.pin_memory)

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        """The same batch with every tensor changed."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {k: change(v) if isinstance(v, torch.Tensor) else v for k, v in values.items()}
        return Batch(**changed)


def trained_positions(targets_BT: torch.Tensor) -> torch.Tensor:
    """The positions [R] of the flat batch that have a target, in order."""
    return (targets_BT.flatten() != IGNORED).nonzero().squeeze(1)

"""The forms a piece of data takes on its way to the model, and the legend of shape letters.

Captions, interleaved pages, plain text, chats, few-shot prompts and chat requests are all a
`Document`. `data/encode.py` turns one into an `Encoded`; packed rows of those make a `Batch`.

Shape letters, for every tensor name in the project:

    B  rows of a micro-batch        T  places of a row (tokens and image places)
    D  width of the decoder         V  vocabulary
    H  query heads                  K  key/value heads
    N  images of a micro-batch      P  patches of an image, S its image tokens
    E  width of the vision encoder  C  colour channels (or channels of a feature map)
    Y  X  rows and columns of a pixel grid or a patch grid
    M  documents of a micro-batch   F  width of a feed-forward layer
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

IGNORED = -100
"""The target of a place that is not trained: padding, image places, prompts."""


@dataclass(frozen=True, slots=True)
class Text:
    """A run of text. `train` says whether the model learns to write it (or only reads it).

    `ids` are its tokens where a store holds those of the tokenizer in use; else it is tokenized when encoded.
    """

    text: str
    train: bool = True
    ids: list[int] | None = field(default=None, compare=False, repr=False)


Box = tuple[int, int, int, int]
"""Left, top, right and bottom of a part of a picture, in pixels of the decoded picture; right and bottom excluded."""


@dataclass(frozen=True, slots=True)
class Image:
    """A picture, or the part of one in `box`: encoded bytes (JPEG, PNG or WebP), undecoded until a worker needs them.

    Pixels are counted as the file stores them: an orientation in its EXIF data is not applied.
    """

    data: bytes
    box: Box | None = None  # None: the whole picture


@dataclass(frozen=True, slots=True)
class Mark:
    """A special token by its name (`user`, `assistant`, `end`). Text can never spell one."""

    name: str
    train: bool = False


Piece = Text | Image | Mark


@dataclass(frozen=True, slots=True)
class Document:
    """Text and images in reading order, with where they come from.

    `metadata` travels with the document (licence, attribution, caption language, ...) and never
    reaches the model.
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
    """A document in the model's words.

    `tokens` (int32, one per place) holds the image token at every image place; `train` (bool, same
    length) marks the tokens the model learns to predict; `images` are in the order of their tokens.
    """

    tokens: np.ndarray
    train: np.ndarray
    images: tuple[Image, ...]


@dataclass(slots=True)
class Batch:
    """Packed rows of one source or of several, ready for the model.

    tokens_BT    int64   token at each place; the image token at image places; 0 in padding
    targets_BT   int64   the next token where it is trained, else `IGNORED`
    document_BT  int64   1, 2, ... for the documents of a row in order; 0 in padding
    position_BT  int64   place within its document, from 0
    images_NCYX  uint8   RGB pixels in the order of their places, then black padding images
    images       int     how many of the N are real
    source_B     int64   which source of the mix made each row (index into the run's sources)
    broken       names   the images that could not be decoded and are grey instead
    """

    tokens_BT: torch.Tensor
    targets_BT: torch.Tensor
    document_BT: torch.Tensor
    position_BT: torch.Tensor
    images_NCYX: torch.Tensor
    images: int
    source_B: torch.Tensor
    broken: tuple[str, ...] = ()

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

"""Documents as prompts of the engine: tokens, and tiles as pictures that are decoded when they are needed."""

import functools
import hashlib
import logging
import threading
from collections.abc import Callable
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch

from mm1.config.model import ModelConfig
from mm1.data.encode import encode
from mm1.data.image import ImageError, load_tiles
from mm1.data.tiles import tile_spec
from mm1.data.tokenizer import Tokenizer
from mm1.document import Document, Encoded, Tile
from mm1.generate.prompt import Picture, Prompt

log = logging.getLogger("mm1")


class DocumentPrompts:
    """Turns documents into prompts of one model. An image that cannot be decoded is grey."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.tile = tile_spec(config, use=True)

    def encode(self, document: Document) -> Encoded:
        """The document as token ids, open at its end."""
        return encode(document, self.tokenizer, tile=self.tile, end=False)

    def prompt(self, encoded: Encoded) -> Prompt:
        """The prompt of an encoded document."""
        pictures: list[Picture] = []
        for _, tiles in groupby(zip(encoded.pictures, encoded.images, strict=True), key=itemgetter(0)):
            pictures += self.pictures(tuple(tile for _, tile in tiles))
        at_image = encoded.tokens == self.tokenizer.image
        features = None if encoded.features is None else encoded.features[at_image].astype(np.int64)
        return Prompt(encoded.tokens.tolist(), pictures, features)

    def pictures(self, tiles: tuple[Tile, ...]) -> list[Picture]:
        """Each tile of one image as a picture of the engine."""
        decoded = _Decoded(functools.partial(self._decode, tiles), len(tiles))
        return [Picture(name, functools.partial(decoded.tile, n)) for n, name in enumerate(tile_names(tiles))]

    def _decode(self, tiles: tuple[Tile, ...]) -> list[torch.Tensor]:
        try:
            return decode_tiles(tiles, size=self.tile.size)
        except ImageError as error:
            log.warning("grey picture instead of %s: %s", hashlib.sha256(tiles[0].image.data).hexdigest()[:16], error)
            size = self.tile.size
            return [torch.full((3, size, size), 128, dtype=torch.uint8)] * len(tiles)


class _Decoded:
    """The tiles of one image, decoded when the first is asked for and kept until each was; any thread may ask."""

    def __init__(self, decode: Callable[[], list[torch.Tensor]], tiles: int):
        self._decode, self._tiles = decode, tiles
        self._pixels: list[torch.Tensor] = []
        self._waiting: set[int] = set()
        self._lock = threading.Lock()

    def tile(self, number: int) -> torch.Tensor:
        """The pixels of tile `number`."""
        with self._lock:
            if not self._pixels:
                self._pixels, self._waiting = self._decode(), set(range(self._tiles))
            pixels_CYX = self._pixels[number]
            self._waiting.discard(number)
            if not self._waiting:
                self._pixels = []
            return pixels_CYX


def tile_names(tiles: tuple[Tile, ...]) -> list[str]:
    """A name for each tile of one image: the hash of the image's bytes, and how the tile is cut from it."""
    image = tiles[0].image
    digest = hashlib.sha256(image.data).hexdigest()
    return [f"{digest} {image.box} {tile.cut.sizes} {tile.cut.corner}" for tile in tiles]


def decode_tiles(tiles: tuple[Tile, ...], *, size: int) -> list[torch.Tensor]:
    """The pixels, uint8 [3, size, size], of each tile of one image.

    Raises:
        ImageError: the image cannot be decoded.
    """
    return [torch.from_numpy(x) for x in load_tiles(tiles[0].image, [tile.cut for tile in tiles], size=size)]

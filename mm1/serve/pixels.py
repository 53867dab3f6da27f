"""Decoded pictures of prompts: kept up to a number of bytes, else decoded again when they are encoded."""

import itertools
import threading
import weakref
from collections.abc import Sequence
from functools import partial

import torch

from mm1.document import Tile
from mm1.generate.document_prompt import decode_tiles
from mm1.generate.prompt import Picture


class Pixels:
    """Makes the pictures of prompts, which keep `most` bytes of pixels at most."""

    def __init__(self, size: int, *, most: int):
        """`size` is the side of a tile in pixels."""
        self.most, self._size = most, size
        self._kept: dict[int, int] = {}  # bytes of each tile that a prompt keeps
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """Bytes of the pixels that prompts keep."""
        return sum(list(self._kept.values()))

    def pictures(self, tiles: tuple[Tile, ...], names: Sequence[str], *, known: bool) -> list[Picture]:
        """The tiles of one image as pictures. They are decoded, unless their features are `known`.

        Raises:
            ImageError: the image cannot be decoded.
        """
        pixels = [] if known else decode_tiles(tiles, size=self._size)
        if pixels and self._keep(pixels):
            return [Picture(name, partial(_same, one)) for name, one in zip(names, pixels, strict=True)]
        return [Picture(name, partial(self._again, tiles, number)) for number, name in enumerate(names)]

    def _keep(self, pixels: Sequence[torch.Tensor]) -> bool:
        """Whether there is room for the pixels; if so they count until they are freed."""
        with self._lock:
            if self.held + sum(one.nbytes for one in pixels) > self.most:
                return False
            for one in pixels:
                number = next(self._numbers)
                self._kept[number] = one.nbytes
                weakref.finalize(one, self._kept.pop, number)
        return True

    def _again(self, tiles: tuple[Tile, ...], number: int) -> torch.Tensor:
        return decode_tiles(tiles, size=self._size)[number]


def _same(pixels_CYX: torch.Tensor) -> torch.Tensor:
    return pixels_CYX

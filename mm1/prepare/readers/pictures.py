"""The pictures that records name, in whatever way they do: bytes, {bytes, path}, a file's name, an address, base64."""

from collections.abc import Sequence
from typing import Any

from mm1.document import Image
from mm1.prepare.bounded_read import read_picture
from mm1.prepare.fetch import FetchError
from mm1.prepare.html.image_address import data_uri_bytes
from mm1.prepare.ledger import MissingImage
from mm1.prepare.shard import Shard, file_inside

_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")  # JPEG, PNG, GIF, WebP
_SHORTEST_BASE64 = 100  # characters: no name of a file that begins like that is as long


class Pictures:
    """The pictures that the records of a shard name."""

    def __init__(self, shard: Shard):
        self.shard = shard
        self._fetched: dict[str, bytes | FetchError] = {}

    def get(self, cell: Any) -> Image:
        """The picture of a cell; a `MissingImage` if there is none."""
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path") or cell.get("url")
        if isinstance(cell, bytes):
            return Image(cell)
        if not isinstance(cell, str) or not cell:
            return MissingImage(reason="row without a picture")
        if cell.startswith("data:"):
            data = data_uri_bytes(cell)
            return MissingImage(reason="picture in a data: address that is broken") if data is None else Image(data)
        if len(cell) > _SHORTEST_BASE64 and cell.startswith(_BASE64_STARTS):
            data = data_uri_bytes(f"data:image/any;base64,{cell}")
            return MissingImage(reason="picture in base64 that is broken") if data is None else Image(data)
        if "://" not in cell or cell.startswith("file://"):
            return read_picture(self.shard, cell)
        if self.shard.fetcher is None:
            return MissingImage(reason="picture by address only, not fetched (fetch=true fetches)", name=cell)
        fetched = self._fetched.pop(cell, None) or self.shard.fetcher.fetch_all([cell])[0]
        return Image(fetched) if isinstance(fetched, bytes) else MissingImage(reason=str(fetched), name=cell)

    def has(self, name: Any) -> bool:
        """Whether there is a picture file of this name."""
        return isinstance(name, str) and any(file_inside(folder, name) for folder in self.shard.picture_folders)

    def prefetch(self, cells: Sequence[Any]) -> None:
        """Fetches the pictures of those cells that are addresses, from several hosts at once."""
        if self.shard.fetcher is not None:
            named = dict.fromkeys(cell for cell in cells if isinstance(cell, str) and "://" in cell)
            addresses = [cell for cell in named if not cell.startswith("file://")]
            self._fetched = dict(zip(addresses, self.shard.fetcher.fetch_all(addresses), strict=True))

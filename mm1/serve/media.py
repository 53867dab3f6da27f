"""Pictures that clients send: the bytes behind each address, within limits, before anything is decoded."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

from mm1.data.image import size_of
from mm1.document import Image
from mm1.serve.errors import ApiError, invalid
from mm1.serve.limits import Limits

FORMATS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM")
"""The first bytes of the formats that are taken; WebP is told by two of its fields. Pillow reads many more, some of
which start other programs."""


@dataclass(frozen=True, slots=True)
class Media:
    """Fetches the pictures of requests."""

    limits: Limits

    async def fetch(self, addresses: Sequence[str]) -> dict[str, Image]:
        """The pictures by their address; one that occurs twice is read once.

        Raises:
            ApiError: there are too many, or one is too large, unreadable or not allowed.
        """
        if len(addresses) > self.limits.max_pictures:
            raise invalid(
                f"the request has {len(addresses)} pictures, and this server takes {self.limits.max_pictures}",
                code="too_many_pictures",
            )
        return {address: self._checked(await self._bytes(address)) for address in dict.fromkeys(addresses)}

    async def _bytes(self, address: str) -> bytes:
        if address[:5].lower() != "data:":
            raise invalid(
                "a picture's address must be data:image/...;base64,...; this server fetches none", "image_url"
            )
        return self._inline(address)

    def _inline(self, address: str) -> bytes:
        """The bytes in a data: address (RFC 2397), of which only the base64 form is taken."""
        head, comma, payload = address.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise invalid("a data: address must be data:image/...;base64,...", "image_url")
        if len(payload) > self.limits.max_picture_bytes * 4 // 3 + 4:
            raise self._too_large()
        try:
            return base64.b64decode(payload, validate=True)
        except (binascii.Error, ValueError):
            raise invalid("the base64 of a data: address is damaged", "image_url") from None

    def _checked(self, data: bytes) -> Image:
        """The picture of these bytes, of which only the header is read."""
        if len(data) > self.limits.max_picture_bytes:
            raise self._too_large()
        is_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
        size = size_of(data) if is_webp or data.startswith(FORMATS) else None
        if size is None:
            raise unreadable()
        if size[0] * size[1] > self.limits.max_picture_pixels:
            raise invalid(
                f"a picture has {size[0]} x {size[1]} pixels, and this server takes {self.limits.max_picture_pixels:,}",
                "image_url",
                code="picture_too_large",
            )
        return Image(data, size=size)

    def _too_large(self) -> ApiError:
        return invalid(
            f"a picture has more than the {self.limits.max_picture_bytes:,} bytes that this server takes",
            "image_url",
            code="picture_too_large",
        )


def unreadable() -> ApiError:
    """The error for a picture that cannot be decoded."""
    return invalid(
        "a picture cannot be decoded; send a whole JPEG, PNG, WebP, GIF or BMP", "image_url", code="invalid_image"
    )

"""Pictures that clients send: the bytes behind each address, within limits, before anything is decoded."""

import asyncio
import base64
import binascii
import http.client
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urljoin, urlsplit

from mm1.data.image import has_too_many_pixels, size_of
from mm1.document import Image
from mm1.serve.errors import ApiError, invalid
from mm1.serve.limits import Limits
from mm1.web import FetchError, connect, public_ip, read_answer, target_of

FORMATS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM")
"""The first bytes of the formats that are taken; WebP is told by two of its fields. Pillow reads many more, some of
which start other programs."""

REDIRECTS = 3
"""How often an address may send us on; each hop is checked like the first."""

AT_ONCE = 1 << 18
"""Characters of JPEGs in a request that are read on the spot, which takes less time than a thread to begin.

Of a JPEG nothing but its header is read. Pillow decodes a PNG that has EXIF, to find it."""

JPEG_IN_BASE64 = "/9j/"
"""How every JPEG begins in base64."""

THREADS = 8
"""Pictures that are fetched from the web at a time, of all requests together."""


@dataclass(frozen=True, slots=True)
class Media:
    """Gets the pictures of requests; from the web only those of `domains`, by name and port: `example.org`,
    `example.org:8080`, or with a dot before it, all names that end so."""

    limits: Limits
    domains: frozenset[str] = frozenset()
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(THREADS, thread_name_prefix="media"))

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
        loop = asyncio.get_running_loop()
        unique = list(dict.fromkeys(addresses))
        inline = [address for address in unique if address[:5].lower() == "data:"]
        if len(inline) == len(unique) and sum(map(len, inline)) <= AT_ONCE and all(map(_is_jpeg, inline)):
            return self._pictures(inline)
        # those in the request take less time than to hand each to a thread
        parts = [inline, *([address] for address in unique if address[:5].lower() != "data:")]
        tasks = [loop.run_in_executor(self.pool, self._pictures, part) for part in parts if part]
        return {address: image for pictures in await asyncio.gather(*tasks) for address, image in pictures.items()}

    def _pictures(self, addresses: Sequence[str]) -> dict[str, Image]:
        return {address: self._picture(address) for address in addresses}

    def _picture(self, address: str) -> Image:
        inline = address[:5].lower() == "data:"
        return self._checked(self._inline(address) if inline else self._fetched(address))

    def _inline(self, address: str) -> bytes:
        """The bytes in a data: address (RFC 2397), of which only the base64 form is taken."""
        head, comma, payload = address.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise invalid("a data: address must be data:image/...;base64,...", "image_url")
        if any(sign in payload for sign in "\n\r\t "):  # many tools break base64 into lines
            payload = "".join(payload.split())
        if len(payload) > self.limits.max_picture_bytes * 4 // 3 + 4:
            raise self._too_large()
        try:
            return base64.b64decode(payload, validate=True)
        except (binascii.Error, ValueError):
            raise invalid("the base64 of a data: address is damaged", "image_url") from None

    def _fetched(self, address: str) -> bytes:
        """The bytes at an address of the web. The client learns that there are none, not why."""
        try:
            for _ in range(REDIRECTS + 1):
                parts = self._allowed(address)
                with closing(connect(parts.scheme, _host(parts), parts.port, ip=public_ip(_host(parts)))) as connection:
                    connection.request("GET", target_of(parts), headers={"Accept": "image/*", "User-Agent": "mm1"})
                    answer = connection.getresponse()
                    if answer.status == 200:
                        return read_answer(answer, most=self.limits.max_picture_bytes)
                    if answer.status not in (301, 302, 303, 307, 308):
                        break
                    address = urljoin(address, answer.getheader("Location") or "")
        except (FetchError, OSError, http.client.HTTPException, ValueError):
            pass
        raise invalid("a picture cannot be fetched; send it as data:image/...;base64,...", "image_url")

    def _allowed(self, address: str) -> SplitResult:
        """The parts of an address that this server may fetch.

        Raises:
            ApiError: it may not. Signs that some programs read in another way than others are no part of an address.
        """
        parts = None
        if self.domains and address.isascii() and address.isprintable() and not set(address) & set("\\ @"):
            try:
                parts = urlsplit(address)
                host, port = _host(parts), parts.port
            except ValueError:
                parts = None
        if parts is not None and parts.scheme in ("http", "https") and host:
            names = [host, *(host[at:] for at, sign in enumerate(host) if sign == ".")]
            if any((f"{name}:{port}" if port else name) in self.domains for name in names):
                return parts
        which = "of the hosts in --allow-media-domains" if self.domains else "where --allow-media-domains names hosts"
        raise invalid(
            f"a picture's address must be data:image/...;base64,...; this server fetches pictures only {which}",
            "image_url",
            code="address_not_allowed",
        )

    def _checked(self, data: bytes) -> Image:
        """The picture of these bytes, of which only the header is read."""
        if len(data) > self.limits.max_picture_bytes:
            raise self._too_large()
        is_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
        if not is_webp and not data.startswith(FORMATS):  # Pillow would ask all its readers, and some read it all
            raise unreadable()
        size = size_of(data)
        if size is None and has_too_many_pixels(data):
            raise self._too_many_pixels("")
        if size is None or min(size) < 1:
            raise unreadable()
        if size[0] * size[1] > self.limits.max_picture_pixels:
            raise self._too_many_pixels(f"{size[0]} x {size[1]}")
        return Image(data, size=size)

    def _too_many_pixels(self, size: str) -> ApiError:
        most = f"{self.limits.max_picture_pixels:,}"
        how_many = f"{size} pixels, and this server takes {most}" if size else f"more than {most} pixels"
        return invalid(f"a picture has {how_many}; make it smaller", "image_url", code="picture_too_large")

    def _too_large(self) -> ApiError:
        return invalid(
            f"a picture has more than the {self.limits.max_picture_bytes:,} bytes that this server takes",
            "image_url",
            code="picture_too_large",
        )


def _host(parts: SplitResult) -> str:
    return (parts.hostname or "").rstrip(".").lower()


def _is_jpeg(address: str) -> bool:
    """Whether a data: address holds a JPEG."""
    return address.partition(",")[2].startswith(JPEG_IN_BASE64)


def unreadable() -> ApiError:
    """The error for a picture that cannot be decoded."""
    return invalid(
        "a picture cannot be decoded; send a whole JPEG, PNG, WebP, GIF or BMP", "image_url", code="invalid_image"
    )

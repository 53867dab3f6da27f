"""Pictures by their address: fetched only where the user asks for it, politely, bounded, and kept.

A data set is a list of addresses that strangers wrote. None of them may reach into the network this machine stands in:
a host is resolved once, refused unless all its addresses are public, and the connection goes to the address that was
checked, after every redirect anew.
"""

import hashlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit
from urllib.robotparser import RobotFileParser

AGENT = "mm1-prepare (+https://arxiv.org/abs/2403.09611)"
_LARGEST = 20 * 2**20
_SECONDS, _REDIRECTS, _AT_ONCE = 10.0, 4, 16
_BETWEEN = 0.5  # seconds between two requests to one host


class WebError(ValueError):
    """An address that gives no picture; the message is the reason, in a few words, under which it is counted."""


@dataclass(frozen=True, slots=True)
class Web:
    """Fetches addresses; what was fetched lies in `cache` by the hash of its address, and is not fetched again."""

    cache: Path

    def fetch_all(self, addresses: Sequence[str]) -> list[bytes | WebError]:
        """The bytes behind each address, or why there are none; a few hosts at once, each in turn."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(self._kept, addresses))

    def _kept(self, address: str) -> bytes | WebError:
        name = hashlib.sha256(address.encode("utf-8", "replace")).hexdigest()
        path = self.cache / name[:2] / name
        if path.is_file():
            return path.read_bytes()
        try:
            data = fetch(address)
        except WebError as error:
            return error
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{name}.{threading.get_ident()}.part")
        part.write_bytes(data)
        part.rename(path)
        return data


def fetch(address: str, *, robots: bool = True) -> bytes:
    """The bytes behind an http(s) address, at most 20 MB, in at most 10 seconds a step and 4 redirects.

    Raises:
        WebError: refused by us (a private address, another scheme), by the host (robots.txt, `noai`), or not there.
    """
    for _ in range(_REDIRECTS + 1):
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise WebError("address that is not of the web")
        if robots and not _allowed(f"{parts.scheme}://{parts.netloc}", address):
            raise WebError("address that robots.txt forbids")
        answer = _ask(parts.scheme, parts.hostname, parts.port, target=_target(parts))
        if answer.moved:
            address = urljoin(address, answer.moved)
            continue
        return answer.data
    raise WebError("address that redirects too often")


@dataclass(frozen=True, slots=True)
class _Answer:
    data: bytes
    moved: str


def _target(parts) -> str:
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    return f"{path}?{quote(parts.query, safe='/%:@!$&()*+,;=~-._?')}" if parts.query else path


def _ask(scheme: str, host: str, port: int | None, *, target: str) -> _Answer:
    place = public_address(host)
    with _turn(host):
        try:
            connection = _connection(scheme, host, port, place=place)
            with closing(connection):
                return _exchange(connection, target)
        except (OSError, http.client.HTTPException) as error:
            raise WebError("address that does not answer") from error


def _exchange(connection: http.client.HTTPConnection, target: str) -> _Answer:
    connection.request("GET", target, headers={"User-Agent": AGENT, "Accept": "image/*,*/*;q=0.1"})
    answer = connection.getresponse()
    if answer.status in (301, 302, 303, 307, 308):
        return _Answer(b"", answer.getheader("Location") or "")
    if answer.status != 200:
        raise WebError("address that answers with an error")
    if "noai" in (answer.getheader("X-Robots-Tag") or "").lower():
        raise WebError("address that forbids use for training (X-Robots-Tag)")
    return _Answer(_read(answer), "")


def _read(answer: http.client.HTTPResponse) -> bytes:
    """All of the answer, or an error: a host that drips or pours is left."""
    end, data = time.monotonic() + _SECONDS, bytearray()
    while block := answer.read1(2**16):
        data += block
        if len(data) > _LARGEST or time.monotonic() > end:
            raise WebError("address whose answer is too large or too slow")
    return bytes(data)


def public_address(host: str) -> str:
    """One of the host's addresses, all of which are public.

    Raises:
        WebError: it has none, or one that is private, loopback, link-local or reserved.
    """
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise WebError("address of an unknown host") from error
    for place in found:
        address = ipaddress.ip_address(str(place).partition("%")[0])
        inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
        if not (address.is_global and inner.is_global) or address.is_multicast:
            raise WebError("address inside a private network")
    return str(sorted(found)[0])


def _connection(scheme: str, host: str, port: int | None, *, place: str) -> http.client.HTTPConnection:
    """A connection that speaks to `host` at the address that was checked."""
    kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
    connection = kind(host, port, timeout=_SECONDS)
    joined = socket.create_connection((place, connection.port), timeout=_SECONDS)
    if scheme == "https":
        joined = ssl.create_default_context().wrap_socket(joined, server_hostname=host)
    connection.sock = joined
    return connection


@lru_cache(maxsize=4096)
def _rules(site: str) -> RobotFileParser:
    rules = RobotFileParser()
    try:
        rules.parse(fetch(f"{site}/robots.txt", robots=False).decode("utf-8", "replace").splitlines())
    except WebError:
        rules.parse([])  # without rules all is allowed (RFC 9309, section 2.3.1.3)
    return rules


def _allowed(site: str, address: str) -> bool:
    return _rules(site).can_fetch(AGENT, address)


_LAST: dict[str, float] = {}
_LOCKS: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


@contextmanager
def _turn(host: str) -> Iterator[None]:
    """One request to a host at a time, and not at once after the last."""
    with _LOCKS[host]:
        time.sleep(max(0.0, _LAST.get(host, 0.0) + _BETWEEN - time.monotonic()))
        yield
        _LAST[host] = time.monotonic()

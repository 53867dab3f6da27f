"""Fetches pictures by their address: only if the user asks for it, politely, with bounds, and cached.

A data set is a list of addresses that strangers wrote, and none of them may reach into this machine's network:
`web.py` says how. The same holds after every redirect.
"""

import hashlib
import http.client
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import urljoin, urlsplit
from urllib.robotparser import RobotFileParser

from mm1.web import FetchError, connect, public_ip, read_answer, target_of

USER_AGENT = "mm1-prepare (+https://arxiv.org/abs/2403.09611)"
_LARGEST = 20 * 2**20  # bytes
_MOST_REDIRECTS, _THREADS = 4, 16
_SECONDS_BETWEEN_REQUESTS = 0.5  # to one host


@dataclass(frozen=True, slots=True)
class Fetcher:
    """Fetches addresses, each once: the answers are kept in the folder `cache` by the hash of their address."""

    cache: Path

    def fetch_all(self, addresses: Sequence[str]) -> list[bytes | FetchError]:
        """The bytes at each address, or why there are none; several hosts at once, one request to a host at a time."""
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self._fetch_cached, addresses))

    def _fetch_cached(self, address: str) -> bytes | FetchError:
        name = hashlib.sha256(address.encode("utf-8", "replace")).hexdigest()
        path = self.cache / name[:2] / name
        if path.is_file():
            return path.read_bytes()
        try:
            data = fetch(address)
        except FetchError as error:
            return error
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{name}.{threading.get_ident()}.part")
        partial.write_bytes(data)
        partial.rename(path)
        return data


def fetch(address: str, *, robots: bool = True) -> bytes:
    """The bytes at an http(s) address: at most 20 MB, 10 seconds per step and 4 redirects.

    Raises:
        FetchError: refused by us (a private address, another scheme), by the host (robots.txt, `noai`), or missing.
    """
    for _ in range(_MOST_REDIRECTS + 1):
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise FetchError("address that is not of the web")
        if robots and not _robots_allow(f"{parts.scheme}://{parts.netloc}", address):
            raise FetchError("address that robots.txt forbids")
        response = _request(parts.scheme, parts.hostname, parts.port, target=target_of(parts))
        if response.redirect:
            address = urljoin(address, response.redirect)
            continue
        return response.data
    raise FetchError("address that redirects too often")


@dataclass(frozen=True, slots=True)
class _Response:
    data: bytes
    redirect: str


def _request(scheme: str, host: str, port: int | None, *, target: str) -> _Response:
    ip = public_ip(host)
    with _rate_limit(host):
        try:
            connection = connect(scheme, host, port, ip=ip)
            with closing(connection):
                return _exchange(connection, target)
        except (OSError, http.client.HTTPException) as error:
            raise FetchError("address that does not answer") from error


def _exchange(connection: http.client.HTTPConnection, target: str) -> _Response:
    connection.request("GET", target, headers={"User-Agent": USER_AGENT, "Accept": "image/*,*/*;q=0.1"})
    answer = connection.getresponse()
    if answer.status in (301, 302, 303, 307, 308):
        return _Response(b"", answer.getheader("Location") or "")
    if answer.status != 200:
        raise FetchError("address that answers with an error")
    if "noai" in (answer.getheader("X-Robots-Tag") or "").lower():
        raise FetchError("address that forbids use for training (X-Robots-Tag)")
    return _Response(read_answer(answer, most=_LARGEST), "")


@lru_cache(maxsize=4096)
def _robots_rules(site: str) -> RobotFileParser:
    rules = RobotFileParser()
    try:
        rules.parse(fetch(f"{site}/robots.txt", robots=False).decode("utf-8", "replace").splitlines())
    except FetchError:
        rules.parse([])  # without rules everything is allowed (RFC 9309, section 2.3.1.3)
    return rules


def _robots_allow(site: str, address: str) -> bool:
    return _robots_rules(site).can_fetch(USER_AGENT, address)


_LAST_REQUEST: dict[str, float] = {}
_LOCKS: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


@contextmanager
def _rate_limit(host: str) -> Iterator[None]:
    """One request to a host at a time, and a pause between two."""
    with _LOCKS[host]:
        time.sleep(max(0.0, _LAST_REQUEST.get(host, 0.0) + _SECONDS_BETWEEN_REQUESTS - time.monotonic()))
        yield
        _LAST_REQUEST[host] = time.monotonic()

"""Connections to addresses that strangers wrote, none of which may reach into this machine's network.

A host is resolved once, refused unless all its addresses are public, and the connection goes to the checked address.
"""

import http.client
import ipaddress
import socket
import ssl
import time
from urllib.parse import SplitResult, quote

SECONDS = 10.0
"""The longest wait for a host at each step, and for a whole answer."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""Addresses that a gateway turns into IPv4 ones (RFC 6052)."""


class FetchError(ValueError):
    """An address that gives no picture; the message is the reason, in a few words, under which it is counted."""


def target_of(parts: SplitResult) -> str:
    """Path and query of an address, as a request names them."""
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    return f"{path}?{quote(parts.query, safe='/%:@!$&()*+,;=~-._?')}" if parts.query else path


def public_ip(host: str) -> str:
    """One of the host's IP addresses, all of which are public.

    Raises:
        FetchError: it has none, or one that is private, loopback, link-local or reserved.
    """
    try:
        ips = {entry[4][0] for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise FetchError("address of an unknown host") from error
    for ip in ips:
        address = ipaddress.ip_address(str(ip).partition("%")[0])
        if not (address.is_global and _inner(address).is_global) or address.is_multicast:
            raise FetchError("address inside a private network")
    return str(sorted(ips)[0])


def _inner(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address that an IPv6 one stands for, or the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def connect(scheme: str, host: str, port: int | None, *, ip: str) -> http.client.HTTPConnection:
    """A connection that names `host` and goes to the IP address that was checked."""
    kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
    connection = kind(host, port, timeout=SECONDS)
    sock = socket.create_connection((ip, connection.port), timeout=SECONDS)
    if scheme == "https":
        sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
    connection.sock = sock
    return connection


def read_answer(answer: http.client.HTTPResponse, *, most: int) -> bytes:
    """The whole answer; an error if the host sends too slowly or more than `most` bytes."""
    end, data = time.monotonic() + SECONDS, bytearray()
    while block := answer.read1(2**16):
        data += block
        if len(data) > most or time.monotonic() > end:
            raise FetchError("address whose answer is too large or too slow")
    return bytes(data)

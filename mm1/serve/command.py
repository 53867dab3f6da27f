"""`mm1 serve`: loads a run and answers until it is told to stop."""

import errno
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mm1.checkpoint import Loaded, load_for_use
from mm1.config.run import load as recorded_run
from mm1.dist import Precision, machine_memory
from mm1.serve.limits import Limits
from mm1.serve.scheduler import STOP_SECONDS

try:
    import uvicorn

    from mm1.serve.api import Server, make_app
except ImportError as error:
    raise ValueError(f"serving needs FastAPI and more ({error}); pip install 'mm1[serve]'") from error


LAST_WORDS = 5
"""Seconds in which the process ends when all is answered, or refused because the time is over. Clients can take their
last bytes until `STOP_SECONDS` before."""


BACKLOG = 2048
"""Connections that may wait to be accepted, as many as uvicorn lets wait."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    host: str = "127.0.0.1"
    port: int = 8000

    def __str__(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def sockets(self) -> list[socket.socket]:
        """A bound socket for each address of the host.

        Raises:
            ValueError: the port is in use, or the host is none of this machine's.
        """
        bound: list[socket.socket] = []
        with self._explained(bound):
            addresses = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, kind, number, _, where in dict.fromkeys(addresses):
                one = socket.socket(family, kind, number)
                bound.append(one)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                one.bind(where)
        return bound

    def listen(self, bound: Sequence[socket.socket]) -> None:
        """Take connections at bound sockets. Until now clients were refused, and another server could bind them too.

        Raises:
            ValueError: another server that was bound at the same time listens already.
        """
        with self._explained(bound):
            for one in bound:
                one.listen(BACKLOG)

    @contextmanager
    def _explained(self, bound: Sequence[socket.socket]) -> Iterator[None]:
        """Close the sockets if the system refuses what is done with them, and say why in plain words."""
        try:
            yield
        except (OSError, UnicodeError) as error:
            for one in bound:
                one.close()
            raise ValueError(self._words(error)) from None

    def _words(self, error: OSError | UnicodeError) -> str:
        number = error.errno if isinstance(error, OSError) else None
        if number == errno.EADDRINUSE:
            return f"port {self.port} is in use; give another one with --port"
        if number == errno.EACCES:
            return f"port {self.port} is not allowed for this user; give one above 1023 with --port"
        return f"{self.host} is no address of this machine; give one with --host, such as 127.0.0.1 or 0.0.0.0"


class StoppableServer(uvicorn.Server):
    """Uvicorn, which after a signal to end listens until what runs has ended: /health then tells load balancers to ask
    other servers, and new requests get an error object."""

    def __init__(self, config: uvicorn.Config, server: Server, *, address: Address):
        super().__init__(config)
        self._server, self._address = server, address
        self._stop_at = math.inf  # in seconds of `time.monotonic`

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        key = "a key is needed" if self._server.keys else "no key is needed"
        _say(f"{self._server.name} answers at {self._address} (chat page) and {self._address}/v1 (clients); {key}")

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self._stop_at == math.inf:
            self._stop_at = time.monotonic() + self._server.limits.drain_seconds
        elif sig == signal.SIGINT:  # the second Ctrl-C waits for no client, no picture and no step
            os._exit(128 + sig)
        self._server.scheduler.drain()

    async def on_tick(self, counter: int) -> bool:
        scheduler, late = self._server.scheduler, time.monotonic() >= self._stop_at
        if late:
            scheduler.give_up()
        if late or (self._stop_at < math.inf and scheduler.idle):
            self.should_exit = True
        return await super().on_tick(counter)


@dataclass(frozen=True, slots=True)
class Service:
    """How a run is served.

    `name` is what clients call it, by default as its folder is called; pictures are fetched from `media_domains`.
    """

    name: str = ""
    limits: Limits = field(default_factory=Limits)
    keys: Sequence[str] = ()
    media_domains: frozenset[str] = frozenset()
    access_log: bool = True


def _check_memory(loaded: Loaded, limits: Limits) -> None:
    """Refuse limits whose keys and values alone don't fit; the system would end the process while it takes them."""
    device = next(loaded.model.parameters()).device
    if device.type == "cuda":
        there, where = torch.cuda.mem_get_info(device)[0], "are free on the GPU"
    else:
        there, where = machine_memory(), "are in this machine"
    wanted, rows = limits.sizes.cache_bytes(loaded.model), limits.max_concurrent + limits.kept_prompts
    if wanted > there:
        raise ValueError(
            f"the keys and values of {rows} requests of --max-length {limits.max_length:,} take {wanted / 1e9:,.1f} "
            f"GB, and {there / 1e9:,.1f} GB {where}; take a shorter --max-length or a lower --max-concurrent: "
            "mm1 budget RECIPE --serve says what fits"
        )


def serve_run(folder: Path, service: Service, *, address: Address, precision: Precision = "auto") -> None:
    """Answer requests for a run until SIGTERM or SIGINT, and end the process.

    Raises:
        ValueError: there is no run that writes text, or nothing can listen at the address.
    """
    recorded_run(folder / "config.json")  # a mistyped name and a port in use are told before minutes of loading
    sockets = address.sockets()
    _say(f"loading {folder} ...")
    if service.access_log:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logging.getLogger("mm1.access").addHandler(handler)
        logging.getLogger("mm1.access").setLevel(logging.INFO)
    loaded = load_for_use(folder, precision=precision)
    _check_memory(loaded, service.limits)
    server = Server(loaded, service.name or folder.resolve().name, service.limits, service.keys, service.media_domains)
    config = uvicorn.Config(
        make_app(server),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=LAST_WORDS - STOP_SECONDS,
        lifespan="on",
    )
    address.listen(sockets)
    StoppableServer(config, server, address=address).run(sockets)
    sys.stderr.flush()
    os._exit(0)  # Python would wait for threads, of which one may fetch a picture for minutes


def keys_of(option: Sequence[str]) -> list[str]:
    """The keys of the command line and of MM1_API_KEY, where several are separated by commas.

    Raises:
        ValueError: a key is empty, which would open the server, or lock it for everybody.
    """
    keys = [key.strip() for key in option]
    if not all(keys):
        raise ValueError("--api-key is empty; give a key, or leave the option out for a server that needs none")
    listed = os.environ.get("MM1_API_KEY")
    if listed is None:
        return keys
    named = [key.strip() for key in listed.split(",") if key.strip()]
    if not named:
        raise ValueError("MM1_API_KEY is set but holds no key; put one into it, or `unset MM1_API_KEY`")
    return [*keys, *named]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

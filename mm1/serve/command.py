"""`mm1 serve`: loads a run and answers until it is told to stop."""

import logging
import math
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mm1.checkpoint import load_for_use
from mm1.dist import Precision
from mm1.serve.limits import Limits

try:
    import uvicorn

    from mm1.serve.api import Server, make_app
except ImportError as error:
    raise ValueError(f"serving needs FastAPI and more ({error}); pip install 'mm1[serve]'") from error


LAST_WORDS = 5
"""Seconds in which clients can take their last bytes when all is answered, or refused because the time is over."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    host: str = "127.0.0.1"
    port: int = 8000


class StoppableServer(uvicorn.Server):
    """Uvicorn, which after a signal to end listens until what runs has ended: /health then tells load balancers to ask
    other servers, and new requests get an error object."""

    def __init__(self, config: uvicorn.Config, server: Server):
        super().__init__(config)
        self._server = server
        self._stop_at = math.inf  # in seconds of `time.monotonic`

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self._stop_at == math.inf:
            self._stop_at = time.monotonic() + self._server.limits.drain_seconds
        elif sig == signal.SIGINT:  # the second Ctrl-C doesn't wait
            self.should_exit = self.force_exit = True
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


def serve_run(folder: Path, service: Service, *, address: Address, precision: Precision = "auto") -> None:
    """Answer requests for a run until SIGTERM or SIGINT.

    Raises:
        ValueError: there is no run that writes text.
    """
    if service.access_log:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logging.getLogger("mm1.access").addHandler(handler)
        logging.getLogger("mm1.access").setLevel(logging.INFO)
    loaded = load_for_use(folder, precision=precision)
    server = Server(loaded, service.name or folder.resolve().name, service.limits, service.keys, service.media_domains)
    config = uvicorn.Config(
        make_app(server),
        host=address.host,
        port=address.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=LAST_WORDS,
        lifespan="on",
    )
    StoppableServer(config, server).run()


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

"""A server of tests: a tiny run behind `mm1 serve`'s app, in a thread of this process."""

import base64
import dataclasses
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import conftest
import small
import uvicorn
from openai import OpenAI

from mm1.checkpoint import Loaded, load_for_use
from mm1.config.run import SourceConfig
from mm1.data.store import write_store
from mm1.document import Document, Text
from mm1.serve.api import Server, make_app
from mm1.serve.limits import Limits
from mm1.train.run import train_run


def chats(count: int) -> Iterator[Document]:
    """Conversations about one picture each."""
    for document in conftest.captions(count):
        image, label = document.pieces
        question = Text("What is it?", train=False)
        yield dataclasses.replace(document, pieces=(image, question, label), metadata={"form": "chat"})


def train(folder: Path, *, chat: bool) -> Path:
    """A run of two steps that learned chats or captions: what it writes has no sense, but is always the same."""
    write_store(chats(40) if chat else conftest.captions(40), folder / "train.lance")
    run = small.run({"captions": folder / "train.lance", "text": folder / "train.lance"})
    run.data.sources = {"train": SourceConfig(store=str(folder / "train.lance"))}
    run.steps = 2
    run.seed = 0 if chat else 4  # seeds whose models write texts
    return train_run(run, folder / "run")


@dataclasses.dataclass
class Running:
    """A server that runs; `base` is its address."""

    server: Server
    base: str

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.base}/v1", api_key="none", max_retries=0, timeout=60)


@contextmanager
def running(
    loaded: Loaded | Path,
    *,
    limits: Limits | None = None,
    keys: tuple[str, ...] = (),
    domains: frozenset[str] = frozenset(),
) -> Iterator[Running]:
    """A server of the run on a free port."""
    loaded = load_for_use(loaded, precision="fp32") if isinstance(loaded, Path) else loaded
    server = Server(loaded, "tiny", limits or Limits(max_concurrent=8, max_length=512), keys, domains)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        config = uvicorn.Config(make_app(server), log_level="warning", access_log=False, lifespan="on")
        served = uvicorn.Server(config)
        thread = threading.Thread(target=served.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not served.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield Running(server, f"http://127.0.0.1:{port}")
        finally:
            served.should_exit = True
            thread.join(30)


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def shown(seed: int = 0) -> dict:
    """A picture as a part of a message."""
    return {"type": "image_url", "image_url": {"url": data_url(conftest.picture(seed, 0)[0])}}


def said(text: str) -> dict:
    """A text as a part of a message."""
    return {"type": "text", "text": text}

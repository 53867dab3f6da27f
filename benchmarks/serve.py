"""How a served run bears load: 1, 8, 32 and 64 clients, pictures and text mixed, on loopback.

    python benchmarks/serve.py [RUN] [--seconds 120] [--clients 1 8 32 64] [--tokens 48] [--url http://... --model NAME]

Without RUN, an untrained run of the recipe `tiny_sft` is made first. `mm1 serve` runs in a process of its own. Every
client asks one streamed question after the other; half of them show a picture of the sample, and every answer has
`--tokens` tokens. Printed are the median and the 95th percentile of the time to the first token, tokens and answers a
second of all clients, errors, and the server's memory after each load.

Then: the time to the first token of two requests that begin with the same eight pictures, as in few-shot prompts.

`--url` loads another server of OpenAI's protocol with the same questions; `--transformers FOLDER` starts `transformers
serve` on an export of the run. There an answer may end early, so compare answers a second at `--free`, which lets ours
end early as well.
"""

import argparse
import base64
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from mm1.data.store import open_store

console = Console(highlight=False)
QUESTIONS = ("What does the picture show?", "Is there a circle?", "Describe it, and say which colours it has.", "Why?")


@dataclass
class Server:
    """An OpenAI server under load; `pid` is its process where that is on this machine."""

    url: str
    model: str
    pid: int = 0

    @property
    def memory(self) -> float:
        """Resident megabytes."""
        if not self.pid:
            return 0.0
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1000


@dataclass
class Measured:
    """What clients saw."""

    first: list[float] = field(default_factory=list)  # seconds to the first token of each answer
    tokens: int = 0
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def row(self, clients: int, server: Server) -> tuple[str, ...]:
        ordered = sorted(self.first)
        late = ordered[int(0.95 * (len(ordered) - 1))] if ordered else 0.0
        numbers = (median(ordered) if ordered else 0.0, late, self.tokens / self.seconds, len(ordered) / self.seconds)
        return (str(clients), *(f"{number:.3g}" for number in numbers), str(len(self.errors)), f"{server.memory:,.0f}")


def ask(server: Server, body: dict[str, Any], measured: Measured, lock: threading.Lock) -> float:
    """The seconds to the first token of one streamed answer, which is counted."""
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=600)
    began, first, tokens = time.monotonic(), 0.0, 0
    try:
        content = json.dumps({"model": server.model, "stream": True, "temperature": 0, **body})
        connection.request("POST", "/v1/chat/completions", content, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise ValueError(f"{answer.status} {answer.read()[:200]!r}")
        while line := answer.readline():
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise ValueError(str(chunk["error"]))
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
            choices = chunk.get("choices")
            if not first and choices and (choices[0]["delta"].get("content") or choices[0]["finish_reason"]):
                first = time.monotonic() - began
        with lock:
            measured.first.append(first)
            measured.tokens += tokens
    except (OSError, ValueError, http.client.HTTPException) as error:
        with lock:
            measured.errors.append(str(error))
    finally:
        connection.close()
    return first


def shown(data: bytes) -> dict[str, Any]:
    url = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def pictures(count: int) -> list[bytes]:
    documents = open_store("sample:captions-test").take(list(range(count)))
    return [document.images[0].data for document in documents]


def load(server: Server, *, clients: int, seconds: float, how: dict[str, Any]) -> Measured:
    """What so many clients see in so many seconds; answers that began in them are waited for."""
    measured, lock, known = Measured(), threading.Lock(), pictures(64)
    began = time.monotonic()

    def client(number: int) -> None:
        chance, asks = random.Random(f"client {number}"), 0
        while time.monotonic() - began < seconds:
            text = {"type": "text", "text": f"{chance.choice(QUESTIONS)} ({asks})"}
            content = [shown(chance.choice(known)), text] if (number + asks) % 2 else [text]
            ask(server, {"messages": [{"role": "user", "content": content}], **how}, measured, lock)
            asks += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    measured.seconds = time.monotonic() - began
    return measured


def shared_prefix(server: Server) -> tuple[float, float]:
    """Seconds to the first token of a request with eight pictures, and of the next one that begins alike."""
    shots = [part for data in pictures(80)[64:72] for part in (shown(data), {"type": "text", "text": " a picture\n"})]
    times = []
    for question in ("What is it?", "Which colour has it?"):
        content = [*shots, {"type": "text", "text": question}]
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
        times.append(ask(server, body, Measured(), threading.Lock()))
    return times[0], times[1]


@contextmanager
def started(words: list[str], *, port: int, model: str) -> Iterator[Server]:
    """A server that these words start, once it answers."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    try:
        server = Server(f"http://127.0.0.1:{port}", model, process.pid)
        for _ in range(600):
            if process.poll() is not None:
                raise SystemExit(f"the server ended: {' '.join(words)}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait(60)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def untrained(folder: Path) -> Path:
    """A run of the demo's shapes after one step on the sample's chats."""
    words = ["train", "tiny_sft", "start_from={}", "steps=1", "validation_sequences=1", "--to", str(folder)]
    subprocess.run([sys.executable, "-m", "mm1", *words], check=True, stdout=subprocess.DEVNULL)
    return folder


def measure(server: Server, options: argparse.Namespace) -> None:
    table = Table("clients", "first token, s", "95 %", "tokens/s", "answers/s", "errors", "MB", title=server.url)
    how: dict[str, Any] = {"max_tokens": options.tokens, "stream_options": {"include_usage": True}}
    how |= {} if options.free else {"ignore_eos": True}
    load(server, clients=2, seconds=2, how=how)  # the first pass of each shape is slower
    for clients in options.clients:
        measured = load(server, clients=clients, seconds=options.seconds, how=how)
        table.add_row(*measured.row(clients, server))
        for error in sorted(set(measured.errors))[:3]:
            console.print(f"error: {error}")
    console.print(table)
    first, second = shared_prefix(server)
    console.print(f"eight pictures: first token after {first:.3f} s, of the next request after {second:.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--free", action="store_true", help="let answers end early")
    parser.add_argument("--url", default="")
    parser.add_argument("--model", default="")
    parser.add_argument("--transformers", type=Path, help="an export of the run")
    options = parser.parse_args()
    console.print(f"{os.cpu_count()} cores, {options.seconds:g} s for each load, answers of {options.tokens} tokens")
    if options.url:
        measure(Server(options.url, options.model), options)
        return
    with tempfile.TemporaryDirectory() as scratch:
        run = options.run or untrained(Path(scratch) / "untrained")
        port = free_port()
        words = [sys.executable, "-m", "mm1", "serve", str(run), "--port", str(port), "--no-access-log"]
        with started([*words, "--max-concurrent", "64"], port=port, model=run.name) as server:
            measure(server, options)
        if options.transformers:
            port = free_port()
            words = [str(Path(sys.executable).with_name("transformers")), "serve", str(options.transformers)]
            words += ["--port", str(port), "--device", "cpu", "--trust-remote-code"]
            with started(words, port=port, model=str(options.transformers)) as server:
                measure(server, options)


if __name__ == "__main__":
    main()

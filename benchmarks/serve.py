"""How a served run bears load: 1, 8, 32 and 64 clients, pictures and text mixed, on loopback.

    python benchmarks/serve.py [RUN] [--seconds 120] [--clients 1 8 32 64] [--tokens 48]
    python benchmarks/serve.py [RUN] --transformers [--seconds 30]
    python benchmarks/serve.py --url http://... --model NAME

Without RUN, an untrained run of the recipe `tiny_sft` is made first. `mm1 serve` runs in a process of its own. Every
client asks one streamed question after the other; half of them show a picture of the sample, and every answer has
`--tokens` tokens. Printed are the median and the 95th percentile of the time to the first token, tokens and answers a
second of all clients, errors, and the server's memory when each load begins, at its half and when it ends; then how
many times the tokens of one client 32 clients get, and how far memory grew. With an error the exit code is 1.

Then: the time to the first token of two requests that begin with the same eight pictures, as in few-shot prompts;
medians of several such pairs. Without RUN also for models whose pictures have MM1's 144 image tokens in place of the
16 of `tiny_sft`, with its decoder and with one of 26 M parameters: eight pictures of 16 tokens cost little beside what
a request of any kind takes on its way.

`--transformers` compares with `transformers serve` on the same weights, at 8 clients, with answers of the same length.
It loads native models only, so RUN must be one that `mm1 export` writes as such (docs/weights.md); without RUN it is
`tiny_sft` with the connector of a LLaVA. `--url` loads another server of OpenAI's protocol with the same questions;
there an answer may end early, so compare answers a second at `--free`, which lets ours end early as well.
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
from typing import IO, Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from mm1.data.store import open_store
from mm1.exchange.export import export_run

console = Console(highlight=False, width=120)
QUESTIONS = ("What does the picture show?", "Is there a circle?", "Describe it, and say which colours it has.", "Why?")
ROUNDS = 7
"""Shared beginnings that are tried, each of other pictures."""


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
    memory: list[float] = field(default_factory=list)  # megabytes of the server, each second

    @property
    def rate(self) -> float:
        """Tokens a second of all clients."""
        return self.tokens / self.seconds

    def row(self, clients: int) -> tuple[str, ...]:
        ordered = sorted(self.first)
        late = ordered[int(0.95 * (len(ordered) - 1))] if ordered else 0.0
        numbers = (median(ordered) if ordered else 0.0, late, self.rate, len(ordered) / self.seconds)
        memory = [f"{self.memory[at]:,.0f}" for at in (0, len(self.memory) // 2, -1)]
        return (str(clients), *(f"{number:.3g}" for number in numbers), str(len(self.errors)), " ".join(memory))


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
            if not first and choices and (choices[0]["delta"].get("content") or choices[0].get("finish_reason")):
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
    measured.memory.append(server.memory)
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(1.0)
            measured.memory.append(server.memory)
    measured.seconds = time.monotonic() - began
    return measured


def shared_prefix(server: Server) -> list[tuple[float, float]]:
    """Seconds to the first token of a request with eight pictures, and of the next one that begins alike; `ROUNDS`."""
    known, rounds = pictures(64 + 8 * ROUNDS), []
    for number in range(ROUNDS):
        first = 64 + 8 * number
        shots = [
            part for data in known[first : first + 8] for part in (shown(data), {"type": "text", "text": " this\n"})
        ]
        times = []
        for question in ("What is it?", "Which colour has it?"):
            content = [*shots, {"type": "text", "text": question}]
            body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
            times.append(ask(server, body, Measured(), threading.Lock()))
        rounds.append((times[0], times[1]))
    return rounds


@contextmanager
def started(words: list[str], *, port: int, model: str, **settings: str) -> Iterator[Server]:
    """A server that these words start, once it answers; `settings` are set in its environment."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=said, env=os.environ | settings)
        try:
            yield _answering(process, port=port, model=model, said=said)
        finally:
            process.terminate()
            process.wait(60)


def _answering(process: subprocess.Popen, *, port: int, model: str, said: IO[bytes]) -> Server:
    """The server of a process, once it takes connections."""
    for _ in range(600):
        if process.poll() is not None:
            said.seek(0)
            raise SystemExit(f"the server ended: {said.read()[-2000:].decode(errors='replace')}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return Server(f"http://127.0.0.1:{port}", model, process.pid)
        time.sleep(0.2)
    raise SystemExit("the server doesn't answer after two minutes")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def untrained(folder: Path, *fields: str) -> Path:
    """A run of the demo's shapes, with these fields changed, after one step on the sample's chats."""
    words = ["train", "tiny_sft", "start_from={}", "steps=1", "validation_sequences=1", *fields, "--to", str(folder)]
    subprocess.run([sys.executable, "-m", "mm1", *words], check=True, stdout=subprocess.DEVNULL)
    return folder


LLAVA = ("model.connector.kind=mlp", "model.connector.tokens=81", "model.vision.feature_layer=-2")
"""The fields that make a LLaVA of `tiny_sft`: an image token for each of its 9 x 9 patches."""

MM1_PICTURES = ("model.vision.image_size=192", "model.connector.tokens=144")
"""The fields that give each picture 144 image tokens (MM1, section 3.2)."""

LARGER = tuple(
    f"model.decoder.{name}={size}"
    for name, size in {"width": 512, "layers": 8, "heads": 8, "kv_heads": 8, "mlp_width": 1376}.items()
)
"""The fields of a decoder with ten times the parameters."""

PREFIX_RUNS = {"144 image tokens": MM1_PICTURES, "144 image tokens, 26 M": (*MM1_PICTURES, *LARGER)}
"""Runs whose shared prefix is measured beside that of `tiny_sft`."""


@contextmanager
def served(run: Path) -> Iterator[Server]:
    """`mm1 serve` of a run."""
    port = free_port()
    words = [sys.executable, "-m", "mm1", "serve", str(run), "--port", str(port), "--no-access-log"]
    with started([*words, "--max-concurrent", "64"], port=port, model=run.name) as server:
        yield server


@contextmanager
def served_by_transformers(export: Path) -> Iterator[Server]:
    """`transformers serve` of an export, which writes one answer after the other where a model takes pictures.

    It gets one thread: with two, the small products of one answer wait for each other, and on a busy machine for long.
    """
    port = free_port()
    words = [str(Path(sys.executable).with_name("transformers")), "serve", str(export), "--host", "127.0.0.1"]
    quiet = {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    words += ["--port", str(port), "--device", "cpu", "--log-level", "error"]
    with started(words, port=port, model=str(export), **quiet) as server:
        yield server


def measure(server: Server, options: argparse.Namespace, how: dict[str, Any]) -> dict[int, Measured]:
    """What each number of clients saw, which is printed."""
    columns = ("clients", "first token, s", "95 %", "tokens/s", "answers/s", "errors", "MB at start, half, end")
    table, loads = Table(*columns, title=server.url), {}
    how = {"max_tokens": options.tokens, "stream_options": {"include_usage": True}, **how}
    load(server, clients=2, seconds=2, how=how)  # the first pass of each shape is slower
    for clients in options.clients:
        loads[clients] = measured = load(server, clients=clients, seconds=options.seconds, how=how)
        table.add_row(*measured.row(clients))
        for error in sorted(set(measured.errors))[:3]:
            console.print(f"error: {error}")
    console.print(table)
    return loads


def bear(server: Server, options: argparse.Namespace, how: dict[str, Any]) -> int:
    """The number of errors under all loads; prints what the loads show together, and the shared prefix."""
    loads = measure(server, options, how)
    if {1, 32} <= loads.keys():
        console.print(f"32 clients get {loads[32].rate / loads[1].rate:.1f} times the tokens of one")
    memory = [loads[clients].memory[-1] for clients in options.clients]
    console.print(f"memory after the first load {memory[0]:,.0f} MB, after the last {memory[-1]:,.0f} MB")
    say_shared_prefix(server)
    return sum(len(measured.errors) for measured in loads.values())


def say_shared_prefix(server: Server) -> None:
    """Print what a beginning that two requests share saves the second one."""
    rounds = shared_prefix(server)
    first, second = (median(times) for times in zip(*rounds, strict=True))
    console.print(
        f"eight pictures: first token after {first:.3f} s, of the next request after {second:.3f} s, "
        f"{median(after / before for before, after in rounds):.2f} of it (medians of {ROUNDS}, {server.model})"
    )


def compare(run: Path, options: argparse.Namespace, scratch: Path) -> int:
    """The number of errors; prints how much faster `mm1 serve` is than `transformers serve` on the same weights."""
    form = export_run(run, scratch / "export")
    if not form.native:
        kind = form.config["architectures"][0]
        raise SystemExit(f"{run} is exported as {kind}, which transformers serve cannot load; docs/weights.md has more")
    options.clients = options.clients if options.clients != LOADS else [8]
    with served(run) as server:
        ours = measure(server, options, {"ignore_eos": True})
    ends = json.loads((scratch / "export/generation_config.json").read_text())
    length = {"min_new_tokens": options.tokens, "max_new_tokens": options.tokens}
    with served_by_transformers(scratch / "export") as server:
        theirs = measure(server, options, {"generation_config": json.dumps(ends | length)})
    for clients, measured in ours.items():
        ratio = measured.rate / theirs[clients].rate
        console.print(f"{clients} clients: mm1 serve writes {ratio:.1f} times the tokens of transformers serve")
    return sum(len(measured.errors) for loads in (ours, theirs) for measured in loads.values())


LOADS = [1, 8, 32, 64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--clients", type=int, nargs="+", default=LOADS)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--free", action="store_true", help="let answers end early")
    parser.add_argument("--url", default="")
    parser.add_argument("--model", default="")
    parser.add_argument("--transformers", action="store_true", help="compare with transformers serve")
    options = parser.parse_args()
    cores, load_average = os.cpu_count(), os.getloadavg()[0]
    console.print(f"{cores} cores, load average {load_average:.1f} before, {options.seconds:g} s for each load")
    how: dict[str, Any] = {} if options.free else {"ignore_eos": True}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if options.url:
            errors = bear(Server(options.url, options.model), options, how)
        elif options.transformers:
            errors = compare(options.run or untrained(scratch / "untrained", *LLAVA), options, scratch)
        else:
            with served(options.run or untrained(scratch / "untrained")) as server:
                errors = bear(server, options, how)
            if not options.run:
                for name, fields in PREFIX_RUNS.items():
                    with served(untrained(scratch / name, *fields)) as server:
                        say_shared_prefix(server)
    raise SystemExit(1 if errors else 0)


if __name__ == "__main__":
    main()

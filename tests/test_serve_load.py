"""Many clients at once: who waits, who is refused, who goes away, and how the server ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import openai
import pytest
import requests
import serving
from serving import Running, said, shown
from test_serve import chat_run, plain_run, written  # noqa: F401  (fixtures)

from mm1.__main__ import main
from mm1.data.chat_format import prompt
from mm1.document import Text
from mm1.serve import command
from mm1.serve.limits import Limits


def body(content="What?", **more) -> dict:
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], "temperature": 0, **more}


LONG = {"max_tokens": 400, "ignore_eos": True}


def until(state: Callable[[], bool], *, each_second: Callable[[], object] = lambda: None) -> None:
    """Wait for a state that must come."""
    deadline = time.monotonic() + 60
    acts = time.monotonic() + 1
    while not state():
        assert time.monotonic() < deadline, "this state never came"
        if time.monotonic() > acts:
            acts += 1
            each_second()
        time.sleep(0.005)


class Gate:
    """Lets the engine of a server do as many steps as the test says."""

    def __init__(self, server: Running):
        engine = server.server.scheduler.engine
        self.steps, step = threading.Semaphore(0), engine.step
        self.open = False

        def gated():
            while not self.open and not self.steps.acquire(timeout=0.01):
                pass
            return step()

        engine.step = gated

    def let(self, steps: int) -> None:
        """Let the engine do so many steps, and wait until it has done them."""
        self.steps.release(steps)
        until(lambda: self.steps._value == 0)


@contextmanager
def gated(run, **limits) -> Iterator[tuple[Running, Gate]]:
    with serving.running(run, limits=Limits(**{"max_length": 512, **limits})) as server:
        gate = Gate(server)
        try:
            yield server, gate
        finally:
            gate.open = True


def stream(server: Running, **more) -> requests.Response:
    """A streamed answer, of which nothing is read yet."""
    address = f"{server.base}/v1/chat/completions"
    return requests.post(address, json=body(**{**LONG, "stream": True, **more}), stream=True, timeout=60)


def whole(server: Running, **content) -> dict:
    """An answer that is not streamed."""
    return requests.post(f"{server.base}/v1/chat/completions", json=content, timeout=60).json()


def test_answers_are_the_same_whatever_else_is_in_flight(chat_run):  # noqa: F811
    """Sixty mixed requests at once, some of which go away: greedy texts and seeded ones equal those asked alone."""
    asks = []
    for number in range(60):
        content = [shown(number % 7), said(f"What is it, number {number % 11}?" * (1 + number % 3))][number % 2 :]
        how = {"temperature": 1.0, "seed": number} if number % 5 == 0 else {}
        asks.append(body(content, max_tokens=5 + number % 40, **how))
    with serving.running(chat_run, limits=Limits(max_concurrent=6, max_length=512, max_prefill=64)) as server:
        alone = [server.client.chat.completions.create(**one).choices[0].message.content for one in asks]
        with ThreadPoolExecutor(30) as pool:
            gone = [pool.submit(lambda: stream(server).close()) for _ in range(6)]
            together = list(
                pool.map(lambda one: server.client.chat.completions.create(**one).choices[0].message.content, asks)
            )
            for one in gone:
                one.result()
    assert together == alone
    texts = [Text(part["text"], train=False) for part in asks[1]["messages"][0]["content"]]
    assert alone[1] == written(chat_run, prompt(texts), asks[1]["max_tokens"])


def test_a_request_joins_and_leaves_while_another_is_written(chat_run):  # noqa: F811
    with gated(chat_run, max_concurrent=2) as (server, gate), ThreadPoolExecutor() as pool:
        long = pool.submit(stream, server)
        until(lambda: server.server.scheduler.waiting == 1)
        gate.let(10)
        until(lambda: server.server.scheduler.running == 1)
        short = pool.submit(whole, server, **body("Why?", max_tokens=3, ignore_eos=True))
        until(lambda: server.server.scheduler.waiting == 1)
        gate.let(10)
        assert short.result(60)["usage"]["completion_tokens"] == 3
        assert server.server.scheduler.running == 1
        long.result(60).close()


def test_a_full_queue_is_429_with_the_time_to_wait(chat_run):  # noqa: F811
    with gated(chat_run, max_concurrent=1, max_waiting=2) as (server, gate), ThreadPoolExecutor() as pool:
        running = pool.submit(stream, server)
        until(lambda: server.server.scheduler.waiting == 1)
        gate.let(3)
        until(lambda: server.server.scheduler.running == 1)
        waiting = [pool.submit(server.client.chat.completions.create, **body(max_tokens=2)) for _ in range(2)]
        until(lambda: server.server.scheduler.waiting == 2)
        reply = requests.post(f"{server.base}/v1/chat/completions", json=body(max_tokens=2), timeout=60)
        assert reply.status_code == 429
        assert 1 <= int(reply.headers["Retry-After"]) <= 60
        assert reply.json()["error"]["type"] == "rate_limit_error"
        with pytest.raises(openai.RateLimitError):
            server.client.chat.completions.create(**body())
        gate.open = True
        assert all(one.result(60).choices for one in waiting)
        running.result(60).close()


def test_a_late_answer_is_504_and_its_row_is_free(chat_run):  # noqa: F811
    with gated(chat_run, max_concurrent=1, request_seconds=0.2) as (server, gate), ThreadPoolExecutor() as pool:
        reply = pool.submit(requests.post, f"{server.base}/v1/chat/completions", json=body(**LONG), timeout=60)
        until(lambda: server.server.scheduler.waiting == 1)
        time.sleep(0.3)
        gate.let(1)
        assert reply.result(60).status_code == 504
        assert reply.result(60).json()["error"]["code"] == "timeout"
        gate.open = True
        until(lambda: server.server.scheduler.running == 0)


def test_clients_that_vanish_leave_no_row_taken(chat_run):  # noqa: F811
    """Streams that are cut after a chunk, requests that wait for whole answers, and some that wait for a row."""
    with gated(chat_run, max_concurrent=4) as (server, gate):
        scheduler = server.server.scheduler
        host, port = server.base.removeprefix("http://").split(":")
        sockets = []
        for number in range(40):
            content = json.dumps(body(**LONG, stream=number % 2 == 0)).encode()
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            head += f"Content-Length: {len(content)}\r\n\r\n"
            one = socket.create_connection((host, int(port)))
            one.sendall(head.encode() + content)
            sockets.append(one)
        until(lambda: scheduler.running + scheduler.waiting == 40)
        gate.let(6)
        for one in sockets:
            one.close()
        gate.let(1)
        # on a busy machine the step may begin before all have gone; 60 more write far fewer than the 400 tokens
        until(lambda: not scheduler.running and not scheduler.waiting, each_second=lambda: gate.let(1))
        gate.open = True
        assert server.client.chat.completions.create(**body(max_tokens=2)).choices
        assert scheduler.engine.prefix_cache.owners.count(None) == scheduler.engine.prefix_cache.rows


def test_a_failed_step_is_500_and_the_next_request_is_answered(chat_run, monkeypatch):  # noqa: F811
    with serving.running(chat_run) as server:
        expected = server.client.chat.completions.create(**body()).choices[0].message.content
        with monkeypatch.context() as patch:
            patch.setattr(chat_run.model.decoder, "logits", lambda hidden: 1 / 0)
            with pytest.raises(openai.InternalServerError, match="the model failed"):
                server.client.chat.completions.create(**body())
        assert server.client.chat.completions.create(**body()).choices[0].message.content == expected
        assert requests.get(f"{server.base}/health", timeout=60).status_code == 200


def test_a_server_that_ends_finishes_what_runs_and_refuses_what_waits(chat_run):  # noqa: F811
    with gated(chat_run, max_concurrent=1) as (server, gate), ThreadPoolExecutor() as pool:
        running = pool.submit(whole, server, **body(max_tokens=50, ignore_eos=True))
        until(lambda: server.server.scheduler.waiting == 1)
        gate.let(3)
        until(lambda: server.server.scheduler.running == 1)
        waiting = pool.submit(requests.post, f"{server.base}/v1/chat/completions", json=body(), timeout=60)
        until(lambda: server.server.scheduler.waiting == 1)
        server.server.scheduler.drain()
        gate.open = True
        assert waiting.result(60).status_code == 503
        assert running.result(60)["usage"]["completion_tokens"] == 50
        assert requests.post(f"{server.base}/v1/chat/completions", json=body(), timeout=60).status_code == 503
        assert requests.get(f"{server.base}/health", timeout=60).status_code == 503


MAIN = "from mm1.__main__ import main; main()"


@contextmanager
def process_of(run, *options: str, program: str = MAIN) -> Iterator[tuple[str, subprocess.Popen]]:
    """`mm1 serve` in a process of its own: its address, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", str(run.folder), "--port", str(port), "--precision", "fp32", *options]
    process = subprocess.Popen([sys.executable, "-c", program, *words], stderr=subprocess.PIPE, text=True)
    base = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, process.stderr.read()
        try:
            return requests.get(f"{base}/health", timeout=5).ok
        except requests.ConnectionError:
            return False

    try:
        until(answers)
        yield base, process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_a_signal_ends_it(chat_run, number):  # noqa: F811
    """The whole answer still comes, and until then /health says that the server ends; the process' code is 0."""
    with process_of(chat_run, "--max-length", "2048") as (base, process):
        said = [process.stderr.readline() for _ in range(2)]
        assert said[0] == f"loading {chat_run.folder} ...\n"
        assert said[1].startswith(f"{chat_run.folder.name} answers at {base} (chat page)")
        assert said[1].endswith("no key is needed\n")
        client = openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)
        name = chat_run.folder.name
        assert [model.id for model in client.models.list()] == [name]
        content = body(max_tokens=1500, ignore_eos=True, stream=True) | {"model": name}
        reply = requests.post(f"{base}/v1/chat/completions", json=content, stream=True, timeout=60)
        lines = reply.iter_lines()
        next(lines)
        os.kill(process.pid, number)
        until(lambda: requests.get(f"{base}/health", timeout=60).status_code == 503)
        with pytest.raises(openai.InternalServerError, match="about to end"):
            client.chat.completions.create(**(body() | {"model": name}))
        rest = list(lines)
        assert rest[-2] == b"data: [DONE]"
        assert json.loads(rest[-4].removeprefix(b"data: "))["choices"][0]["finish_reason"] == "length"
        assert process.wait(60) == 0


def test_answers_that_do_not_end_in_time_are_errors_of_the_protocol(chat_run):  # noqa: F811
    with (
        process_of(chat_run, "--max-length", "20000", "--drain-within", "1") as (base, process),
        ThreadPoolExecutor() as pool,
    ):
        content = body(max_tokens=19000, ignore_eos=True) | {"model": chat_run.folder.name}

        def ask(**more) -> requests.Response:
            return requests.post(f"{base}/v1/chat/completions", json=content | more, timeout=60)

        whole, stream = pool.submit(ask), pool.submit(ask, stream=True)
        running = "mm1:num_requests_running{"
        until(lambda: any(line.startswith(running) and line.endswith(" 2.0") for line in metrics_lines(base)))
        os.kill(process.pid, signal.SIGTERM)
        assert whole.result(60).status_code == 503
        event = stream.result(60).text.strip().split("\n\n")[-1].removeprefix("data: ")
        for error in (whole.result().json()["error"], json.loads(event)["error"]):
            assert (error["code"], error["type"]) == ("shutting_down", "server_error")
        assert process.wait(60) == 0
        assert "Traceback" not in process.stderr.read()


def metrics_lines(base: str) -> list[str]:
    return requests.get(f"{base}/metrics", timeout=60).text.splitlines()


@pytest.mark.parametrize(
    ("words", "environment", "expected"),
    [
        (["--api-key", ""], {}, "--api-key is empty"),
        ([], {"MM1_API_KEY": ""}, "`unset MM1_API_KEY`"),
        ([], {"MM1_API_KEY": " , "}, "`unset MM1_API_KEY`"),
        (["--host", "192.0.2.1"], {}, "192.0.2.1 is no address of this machine"),
        (["--port", "taken"], {}, "is in use; give another one with --port"),
        (["--allow-media-domains", "https://example.org/"], {}, "give a host's name, such as example.org"),
    ],
)
def test_a_server_that_cannot_be_as_it_was_meant_says_so_and_ends(
    chat_run,  # noqa: F811
    words,
    environment,
    expected,
    monkeypatch,
    capsys,
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = [str(taken.getsockname()[1]) if word == "taken" else word for word in words]
        monkeypatch.setattr(sys, "argv", ["mm1", "serve", str(chat_run.folder), *words])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert expected in said


def test_a_cache_larger_than_the_memory_is_refused_before_it_is_taken(chat_run, monkeypatch, capsys):  # noqa: F811
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        words = ["--port", str(free.getsockname()[1]), "--max-length", "1000000000"]
    monkeypatch.setattr(sys, "argv", ["mm1", "serve", str(chat_run.folder), *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert re.search(r"--max-length 1,000,000,000 take [\d,.]+ GB, and [\d.]+ GB are in", capsys.readouterr().err)


def test_a_port_that_is_taken_while_the_run_is_loaded_is_told(chat_run, monkeypatch, capsys):  # noqa: F811
    """As by another server that was started at the same time: both could bind the port."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = str(other.getsockname()[1])
        monkeypatch.setattr(command, "load_for_use", lambda *_, **__: other.listen() or chat_run)
        monkeypatch.setattr(sys, "argv", ["mm1", "serve", str(chat_run.folder), "--port", port])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 2
    assert f"error: port {port} is in use; give another one with --port" in capsys.readouterr().err


def test_a_file_instead_of_a_runs_folder_is_told(chat_run, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(sys, "argv", ["mm1", "serve", str(chat_run.folder / "config.json")])
    with pytest.raises(SystemExit):
        main()
    assert "is a file; name the run's folder" in capsys.readouterr().err

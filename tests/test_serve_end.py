"""How a server ends when something keeps it: a picture that does not come, a long step, an answer half read."""

import asyncio
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import requests
from serving import said
from test_serve import chat_run  # noqa: F401  (a fixture)
from test_serve_load import MAIN, body, process_of, until

from mm1.serve.guard import Guard
from mm1.serve.limits import Limits
from mm1.serve.scheduler import Scheduler


def test_a_picture_that_does_not_come_keeps_no_server_from_its_end(chat_run):  # noqa: F811
    slow = f"import time; from mm1.serve.media import Media; Media._fetched = lambda *_: time.sleep(300); {MAIN}"
    options = ("--drain-within", "1", "--allow-media-domains", "pictures.example")
    with process_of(chat_run, *options, program=slow) as (base, process), ThreadPoolExecutor() as pool:
        picture = {"type": "image_url", "image_url": {"url": "http://pictures.example/1.png"}}
        content = body([picture, said("What?")]) | {"model": chat_run.folder.name}
        waiting = pool.submit(requests.post, f"{base}/v1/chat/completions", json=content, timeout=120)
        time.sleep(2)  # nothing shows that it is fetched
        os.kill(process.pid, signal.SIGTERM)
        reply = waiting.result(120)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "shutting_down")
        assert process.wait(60) == 0
        assert "Traceback" not in process.stderr.read()


def test_a_second_interrupt_ends_the_process_at_once(chat_run):  # noqa: F811
    with process_of(chat_run, "--max-length", "20000") as (base, process):
        content = body(max_tokens=19000, ignore_eos=True, stream=True) | {"model": chat_run.folder.name}
        reply = requests.post(f"{base}/v1/chat/completions", json=content, stream=True, timeout=60)
        next(reply.iter_lines())
        os.kill(process.pid, signal.SIGINT)
        until(lambda: requests.get(f"{base}/health", timeout=60).status_code == 503)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 128 + signal.SIGINT


def cancelled(*messages: dict) -> list[dict]:
    """What a client gets of a request whose task is cancelled after the app has sent these messages."""
    got: list[dict] = []

    async def app(scope, receive, send) -> None:
        for message in messages:
            await send(message)
        await asyncio.Event().wait()

    async def send(message) -> None:
        got.append(message)

    async def run() -> None:
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "noted": {}}
        task = asyncio.create_task(Guard(app, keys=(), limits=Limits())(scope, None, send))
        await asyncio.sleep(0)
        task.cancel()
        await task
        assert scope["noted"]["error"] == "shutting_down"

    asyncio.run(run())
    return got


def test_a_cancelled_request_gets_503_unless_its_answer_has_begun():
    answer, content = cancelled()
    assert answer["status"] == 503
    assert json.loads(content["body"])["error"]["code"] == "shutting_down"
    start = {"type": "http.response.start", "status": 200, "headers": []}
    assert cancelled(start) == [start]


def test_the_scheduler_ends_without_waiting_for_a_long_step():
    ends = threading.Event()
    engine = SimpleNamespace(busy=True, waiting=(), step=lambda: ends.wait(60) and [])
    scheduler = Scheduler(engine, SimpleNamespace(), max_waiting=1)
    scheduler.start()
    began = time.monotonic()
    scheduler.stop()
    assert time.monotonic() - began < 20
    ends.set()

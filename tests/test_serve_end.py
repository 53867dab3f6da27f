"""How a server ends when something keeps it: a picture that does not come, a long step, an answer half read."""

import asyncio
import json

from mm1.serve.guard import Guard
from mm1.serve.limits import Limits


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

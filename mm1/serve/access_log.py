"""One line of JSON for each request: who asked for what, how long it took, and nothing of its content."""

import json
import logging
import time
import uuid
from typing import Any

from mm1.serve.guard import App, Message, Receive, Scope, Send

log = logging.getLogger("mm1.access")


class AccessLog:
    """An ASGI app around another one. What routes put into `scope["noted"]` stands in the line too."""

    def __init__(self, app: App):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, request_id = time.monotonic(), uuid.uuid4().hex
        noted: dict[str, Any] = {}
        scope["noted"] = noted
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self.app(scope, receive, observed)
        finally:
            client = scope.get("client") or ("",)
            line = {"time": round(time.time(), 3), "id": request_id, "client": client[0], "method": scope["method"]}
            line |= {"path": scope["path"][:200], "status": status, "seconds": round(time.monotonic() - began, 4)}
            log.info(json.dumps(line | noted))

"""What a request must pass before it is read: its key, its kind, its size and its speed."""

import asyncio
import hashlib
import hmac
import json
import secrets
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from mm1.serve.errors import ApiError, client_gone, going
from mm1.serve.limits import Limits

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/", "/docs", "/openapi.json", "/health")
"""What may be read without a key: pages without any data, and whether the server lives."""


class Guard:
    """An ASGI app around another one, which gets whole bodies of requests that are allowed.

    `scope["client_salt"]` is another text for each key, so that caches don't tell one client what another one sent. It
    depends on a secret of this process: what caches hold is named by hashes of it and of what a client sends, so nobody
    can search for two pictures whose shortened hashes are equal.
    """

    def __init__(self, app: App, *, keys: Sequence[str], limits: Limits):
        self.app, self.limits = app, limits
        self._keys = [_digest(key) for key in keys]
        self._secret = secrets.token_bytes(16)
        self._held = 0  # bytes of bodies that are read or answered now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        held, began = 0, False

        async def observed(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            scope["client_salt"] = self._salt(scope)
            if scope["method"] in ("POST", "PUT", "PATCH"):
                body = await self._body(scope, receive)
                held = len(body)
                self._held += held
                receive = _replayed(body, receive)
            await self.app(scope, receive, observed)
        except ApiError as error:
            scope["noted"]["error"] = error.code
            await send_error(error, send)
        except asyncio.CancelledError:  # the server has waited long enough
            end = going()
            scope["noted"]["error"] = end.code
            if not began:
                await send_error(end, send)
        finally:
            self._held -= held

    def _salt(self, scope: Scope) -> str:
        """The salt of the request's key.

        Raises:
            ApiError: there is no right key.
        """
        if not self._keys or scope["path"] in OPEN_PATHS:
            return self._salt_of(b"")
        value = _header(scope, b"authorization")
        scheme, _, key = value.partition(b" ")
        ours = _digest(key.strip())
        # every key is compared, in a time that doesn't depend on where they differ
        right = [hmac.compare_digest(ours, other) for other in self._keys]
        if scheme.lower() != b"bearer" or not any(right):
            raise ApiError(
                401,
                "this server needs a key: send it in the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return self._salt_of(ours)

    def _salt_of(self, digest: bytes) -> str:
        return hmac.digest(self._secret, digest, "sha256").hex()[:16]

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body.

        Raises:
            ApiError: it is no JSON, too large, too slow, or more than this server holds at a time.
        """
        kind = _header(scope, b"content-type").partition(b";")[0].strip().lower()
        if kind != b"application/json":  # a page of another site can send forms and plain text, but not this
            raise ApiError(415, "send JSON, with the header Content-Type: application/json")
        declared = _header(scope, b"content-length")
        if declared.isdigit() and int(declared[:20]) > self.limits.max_body_bytes:
            raise self._too_large()
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise client_gone()
                    part, more = message.get("body", b""), message.get("more_body", False)
                    parts.append(part)
                    size += len(part)
                    if size > self.limits.max_body_bytes:
                        raise self._too_large()
                    if self._held + size > self.limits.max_bodies_bytes:
                        raise ApiError(
                            429, "too many large requests at once; ask again in 1 s", headers={"Retry-After": "1"}
                        )
        except TimeoutError:
            raise ApiError(
                408, f"the body did not arrive within {self.limits.body_seconds:g} s", headers={"Connection": "close"}
            ) from None
        return b"".join(parts)

    def _too_large(self) -> ApiError:
        most = self.limits.max_body_bytes
        return ApiError(413, f"the body is larger than the {most:,} bytes that this server takes")


async def send_error(error: ApiError, send: Send) -> None:
    """Answer with an error."""
    body = json.dumps(error.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body in one message, and then what comes."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _digest(key: str | bytes) -> bytes:
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).digest()


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")

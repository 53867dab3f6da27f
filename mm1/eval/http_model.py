"""A model behind a server with OpenAI's protocol."""

import base64
import io
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from http.client import HTTPException
from typing import Any

from PIL import Image as Pillow

from mm1.data.chat_format import messages
from mm1.data.image import orientation
from mm1.document import Document, Image, Mark
from mm1.eval.model import REFUSED, Done, Model, Ranked, Reply, Request, as_pillow, ignore
from mm1.generate.writer import until

REQUEST_FAULTS = (400, 413, 415, 422)
"""Answers that speak of one request, such as a prompt that is too long; others speak of the server."""


class Refused(ValueError):
    """The server does not answer this request, but may answer others."""


class HttpModel(Model):
    """A model behind an OpenAI-compatible server: `url` up to and including /v1; the key is in OPENAI_API_KEY.

    `parallel` requests are sent at a time. A failed one is repeated three times, after `retry_seconds` and then after
    twice as long each time. A server of mm1 continues prompts that are no conversation, as the run itself would; others
    get them as a message of the user.
    """

    def __init__(self, url: str, *, model: str = "", parallel: int = 8, retry_seconds: float = 2.0):
        self.url, self.parallel, self.retry_seconds = url.rstrip("/"), parallel, retry_seconds
        listed = [] if model else self._call("/models")["data"]
        self.model = model or listed[0]["id"]
        self._continues = bool(listed) and listed[0].get("owned_by") == "mm1"
        self.name = f"{self.model} at {self.url}"

    def generate(self, requests: Sequence[Request], *, done: Done = ignore) -> list[Reply]:
        """The replies. One that the server refuses or leaves empty has a problem, and the others are still asked.

        Raises:
            ValueError: the server fails. What is in flight is still answered, so that `done` gets it.
        """
        if any(request.beams > 1 for request in requests):
            raise ValueError(
                "a server writes greedily: leave out --beams, and --protocol openflamingo, which has three"
            )
        replies, one_at_a_time = {}, threading.Lock()

        def answer(number: int) -> None:
            reply = self._reply(requests[number])
            with one_at_a_time:
                replies[number] = reply
                done(number, reply)

        with ThreadPoolExecutor(self.parallel) as pool:
            try:
                for future in as_completed([pool.submit(answer, number) for number in range(len(requests))]):
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return [replies[number] for number in range(len(requests))]

    def _reply(self, request: Request) -> Reply:
        conversation = messages(request.prompt, pictures=_data_url)
        continues = self._continues and not any(isinstance(piece, Mark) for piece in request.prompt.pieces)
        ask = self._continuation if continues else self._content
        try:
            text = ask(conversation, max_tokens=request.max_tokens, stops=request.stops)
        except Refused as refused:
            return Reply("", f"{REFUSED}: {refused}")
        if text is None:
            return Reply("", "no content: null")
        whole = text.encode("utf-8", "replace").decode("utf-8")  # JSON can name halves of characters
        return Reply(until(whole, request.stops))

    def chat(self, conversation: list[dict[str, Any]], *, max_tokens: int, stops: Sequence[str] = ()) -> str:
        """The model's reply to a list of messages; empty if the server sends none."""
        return self._content(conversation, max_tokens=max_tokens, stops=stops) or ""

    def _content(self, conversation: list[dict[str, Any]], *, max_tokens: int, stops: Sequence[str]) -> str | None:
        answered = self._call("/chat/completions", {"messages": conversation} | self._how(max_tokens, stops))
        try:
            content = answered["choices"][0]["message"].get("content")
            if content is None or isinstance(content, str):
                return content
            return "".join(part["text"] for part in content if part["type"] == "text")  # parts, as requests have them
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.url}/chat/completions must answer choices with a message; found {str(answered)[:300]}"
            ) from error

    def _continuation(self, conversation: list[dict[str, Any]], *, max_tokens: int, stops: Sequence[str]) -> str:
        """What a server of mm1 writes after the texts and pictures of a single message."""
        (message,) = conversation
        return self._call("/completions", {"prompt": message["content"]} | self._how(max_tokens, stops))["choices"][0][
            "text"
        ]

    def _how(self, max_tokens: int, stops: Sequence[str]) -> dict[str, Any]:
        how: dict[str, Any] = {"model": self.model, "max_tokens": max_tokens, "temperature": 0}
        # OpenAI's own server refuses more than four
        return how | ({"stop": list(stops)[:4]} if stops else {})

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        for attempt in range(4):
            try:
                call = urllib.request.Request(self.url + path, data=data, headers=headers)
                with urllib.request.urlopen(call, timeout=600) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                if attempt == 3 or (error.code != 429 and error.code < 500):
                    reason = error.read().decode(errors="replace")[:300]
                    kind = Refused if error.code in REQUEST_FAULTS else ValueError
                    raise kind(f"{self.url}{path} answered {error.code}: {reason}") from error
            except json.JSONDecodeError as error:
                raise ValueError(f"{self.url}{path} answered no JSON ({error}); is it OpenAI's protocol?") from error
            except (urllib.error.URLError, TimeoutError, ConnectionError, HTTPException) as error:
                if attempt == 3:
                    raise ValueError(f"{self.url}{path} does not answer ({error}); is the server running?") from error
            time.sleep(self.retry_seconds * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def loglikelihoods(self, requests: Sequence[Request], *, done: Ranked = ignore) -> list[list[float]]:
        raise ValueError("a server gives no likelihoods of prompts with pictures; leave --scoring loglikelihood out")

    def prompt_tokens(self, prompt: Document) -> int:
        return 0  # only the server has the tokenizer


def _data_url(image: Image) -> dict[str, Any]:
    with Pillow.open(io.BytesIO(image.data)) as opened:
        kind, data = (opened.format or "png").lower(), image.data
        as_stored = image.box is None and orientation(opened, image.data) == 1
    if not as_stored:
        file = io.BytesIO()
        as_pillow(image).save(file, format="PNG")
        kind, data = "png", file.getvalue()
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{base64.b64encode(data).decode()}"}}

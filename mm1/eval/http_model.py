"""A model behind a server with OpenAI's protocol."""

import base64
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image as Pillow

from mm1.data.chat_format import messages
from mm1.data.image import orientation
from mm1.document import Document, Image
from mm1.eval.model import Done, Model, Request, as_pillow, ignore
from mm1.generate.writer import until


class HttpModel(Model):
    """A model behind an OpenAI-compatible server: `url` up to and including /v1; the key is in OPENAI_API_KEY.

    `parallel` requests are sent at a time. A failed one is repeated three times, after `retry_seconds` and then after
    twice as long each time.
    """

    def __init__(self, url: str, *, model: str = "", parallel: int = 8, retry_seconds: float = 2.0):
        self.url, self.parallel, self.retry_seconds = url.rstrip("/"), parallel, retry_seconds
        self.model = model or self._call("/models")["data"][0]["id"]
        self.name = f"{self.model} at {self.url}"

    def generate(self, requests: Sequence[Request], *, done: Done = ignore) -> list[str]:
        if any(request.beams > 1 for request in requests):
            raise ValueError("a server writes greedily; leave --beams out")

        def answer(request: Request) -> str:
            conversation = messages(request.prompt, pictures=_data_url)
            text = self.chat(conversation, max_tokens=request.max_tokens, stops=request.stops)
            done(1)
            return until(text, request.stops)

        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(answer, requests))

    def chat(self, conversation: list[dict[str, Any]], *, max_tokens: int, stops: Sequence[str] = ()) -> str:
        """The model's reply to a list of messages."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": conversation,
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        if stops:
            body["stop"] = list(stops)[:4]  # OpenAI's own server refuses more than four
        return self._call("/chat/completions", body)["choices"][0]["message"]["content"] or ""

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
                    raise ValueError(f"{self.url}{path} answered {error.code}: {reason}") from error
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                if attempt == 3:
                    raise ValueError(f"{self.url}{path} does not answer ({error}); is the server running?") from error
            time.sleep(self.retry_seconds * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def loglikelihoods(self, requests: Sequence[Request], *, done: Done = ignore) -> list[list[float]]:
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

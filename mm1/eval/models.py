"""The models that evaluation asks: a run of mm1, a folder of `transformers`, or a server with OpenAI's protocol.

All answer the same `Request`s; the harness does not know which kind it asks.
"""

import base64
import hashlib
import io
import json
import os
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow

from mm1.checkpoint import Loaded, load_for_use
from mm1.data.chat_format import messages
from mm1.data.image import orientation, upright
from mm1.data.tokenizer import Tokenizer
from mm1.dist import Precision
from mm1.document import Document, Image, Mark, Text
from mm1.eval.metrics.short_answers import LETTERS
from mm1.generate.writer import Writer, until
from mm1.hf.files import modelling_file
from mm1.model.mllm import MLLM

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}

Done = Callable[[int], None]
"""Is called with the number of requests that were answered since its last call."""


def _ignore(answered: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, and how it is to be answered.

    stops       strings that end a generated answer
    max_tokens  the longest generated answer
    beams       beams of the search when generating; 1 is greedy
    choices     the answer is the letter of the likeliest of these texts; empty: the answer is generated
    """

    prompt: Document
    stops: tuple[str, ...] = ()
    max_tokens: int = 32
    beams: int = 1
    choices: tuple[str, ...] = ()

    def continued_by(self, choice: str) -> str:
        """The text of a choice as it follows the prompt: after a space, unless the prompt ends with a mark."""
        return choice if isinstance(self.prompt.pieces[-1], Mark) else f" {choice}"


class Model(ABC):
    """A model as the harness sees it. `name` tells one set of weights from another.

    `tiles` says whether it cuts images into tiles by itself, as its config's tiling says.
    """

    name: str
    tiles: bool = False

    def answer(self, requests: Sequence[Request], *, done: Done = _ignore) -> list[str]:
        """The answer to each request: a generated text or, if the request has choices, the letter of the likeliest."""
        open_ended = [request for request in requests if not request.choices]
        multiple_choice = [request for request in requests if request.choices]
        texts = iter(self.generate(open_ended, done=done) if open_ended else [])
        nats = iter(self.loglikelihoods(multiple_choice, done=done) if multiple_choice else [])
        return [LETTERS[int(np.argmax(next(nats)))] if request.choices else next(texts) for request in requests]

    @abstractmethod
    def generate(self, requests: Sequence[Request], *, done: Done = _ignore) -> list[str]:
        """The text that the model writes after each prompt, before the first stop string."""

    @abstractmethod
    def loglikelihoods(self, requests: Sequence[Request], *, done: Done = _ignore) -> list[list[float]]:
        """For each request the log-likelihood of each choice after the prompt, in nats per token."""

    def features(self, images: Sequence[Image]) -> np.ndarray:
        """Mean image features [images, width]."""
        raise ValueError("similar shots need a model that gives features of pictures: one of mm1's runs")

    @abstractmethod
    def prompt_tokens(self, prompt: Document) -> int:
        """The number of tokens of the prompt, image tokens included; 0 if the model doesn't tell."""


class Ours(Model):
    """A model of mm1; `rows` prompts are answered side by side."""

    def __init__(self, model: MLLM, tokenizer: Tokenizer, *, name: str, rows: int = 32):
        self.model, self.tokenizer, self.name, self.rows = model, tokenizer, name, rows
        self.writer = Writer(model, tokenizer, rows=rows)
        self.tiles = model.config.tiling.kind != "none"

    def generate(self, requests: Sequence[Request], *, done: Done = _ignore) -> list[str]:
        groups: dict[tuple, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[request.stops, request.max_tokens, request.beams].append(number)
        texts = [""] * len(requests)
        for (stops, max_tokens, beams), numbers in groups.items():
            prompts = [requests[number].prompt for number in numbers]
            written = self.writer.write(prompts, max_tokens=max_tokens, stops=stops, beams=beams, done=done)
            for number, text in zip(numbers, written, strict=True):
                texts[number] = text
        return texts

    def loglikelihoods(self, requests: Sequence[Request], *, done: Done = _ignore) -> list[list[float]]:
        continuations = [[request.continued_by(choice) for choice in request.choices] for request in requests]
        scores = self.writer.score([request.prompt for request in requests], continuations)
        done(len(requests))
        return [[score.log_probability / score.tokens for score in of_request] for of_request in scores]

    def features(self, images: Sequence[Image]) -> np.ndarray:
        return self.writer.features(images)

    def prompt_tokens(self, prompt: Document) -> int:
        return self.writer.prompt_tokens(prompt)


class HfModel(Model):
    """An image-text-to-text model of `transformers` from its folder, asked one prompt at a time."""

    def __init__(self, folder: Path):
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise ValueError(f"hf: models need transformers ({error}); pip install 'mm1[hf]'") from error
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} has no config.json; hf: takes the folder of a transformers model")
        if (folder / "checkpoints").is_dir():
            raise ValueError(f"{folder} is a run of mm1; give it without hf:")
        ours = modelling_file()
        is_export = (folder / ours.name).is_file() and (folder / ours.name).read_bytes() == ours.read_bytes()
        # our own code is trusted; before it runs other code, `transformers` asks the user
        trust = {"trust_remote_code": True} if is_export else {}
        try:
            self.processor = AutoProcessor.from_pretrained(folder, **trust)
            self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", **trust).eval()
        except (ValueError, OSError) as error:
            why = str(error).strip().splitlines()[0]
            raise ValueError(f"transformers opens {folder} as no model of images and text: {why}") from error
        if torch.cuda.is_available():
            self.model = self.model.to("cuda")
        self.folder = folder
        self.name = f"{folder.name}, weights {_digest(sorted(folder.glob('*.safetensors')))}"

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], *, done: Done = _ignore) -> list[str]:
        texts = []
        for request in requests:
            inputs = self._inputs(request.prompt)
            options: dict[str, Any] = {"max_new_tokens": request.max_tokens, "num_beams": request.beams}
            if request.stops:
                options |= {"stop_strings": list(request.stops), "tokenizer": self.processor.tokenizer}
            tokens = self.model.generate(**inputs, do_sample=False, **options)
            text = self.processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            texts.append(until(text, request.stops))
            done(1)
        return texts

    @torch.inference_mode()
    def loglikelihoods(self, requests: Sequence[Request], *, done: Done = _ignore) -> list[list[float]]:
        nats = []
        for request in requests:
            texts = [request.continued_by(choice) for choice in request.choices]
            nats.append([self._loglikelihood(request.prompt, text) for text in texts])
            done(1)
        return nats

    def _loglikelihood(self, prompt: Document, text: str) -> float:
        before = self._inputs(prompt)
        tokens = self.processor.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        tokens = tokens.to(self.model.device)
        whole = dict(before) | {"input_ids": torch.cat([before["input_ids"], tokens], dim=1)}
        for name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
            if name in before:
                filler = torch.full_like(tokens, int(name == "attention_mask"))
                whole[name] = torch.cat([before[name], filler], dim=1)
        logits = self.model(**whole).logits[0, -tokens.shape[1] - 1 : -1].float()
        return float(logits.log_softmax(-1).gather(-1, tokens[0, :, None]).mean())

    def prompt_tokens(self, prompt: Document) -> int:
        return int(self._inputs(prompt)["input_ids"].shape[1])

    def _inputs(self, prompt: Document) -> Any:
        pictures = [_picture(image) for image in prompt.images]
        add_special_tokens = True
        if any(isinstance(piece, Mark) for piece in prompt.pieces):
            if not self.processor.chat_template:
                raise ValueError(
                    f"{self.folder} has no chat template, but task {prompt.source} asks in chat form; "
                    "give --form plain, or another task"
                )
            text = self.processor.apply_chat_template(messages(prompt), add_generation_prompt=True, tokenize=False)
            begin = self.processor.tokenizer.bos_token
            # as in `apply_chat_template(tokenize=True)`
            add_special_tokens = not (begin and text.startswith(begin))
        else:
            token = self.processor.image_token
            text = "".join(token if isinstance(piece, Image) else piece.text for piece in prompt.pieces)  # type: ignore[union-attr]
        inputs = self.processor(
            text=[text], images=pictures or None, add_special_tokens=add_special_tokens, return_tensors="pt"
        )
        return inputs.to(self.model.device)


class HttpModel(Model):
    """A model behind an OpenAI-compatible server: `url` up to and including /v1; the key is in OPENAI_API_KEY.

    `parallel` requests are sent at a time. A failed one is repeated three times, after `retry_seconds` and then after
    twice as long each time.
    """

    def __init__(self, url: str, *, model: str = "", parallel: int = 8, retry_seconds: float = 2.0):
        self.url, self.parallel, self.retry_seconds = url.rstrip("/"), parallel, retry_seconds
        self.model = model or self._call("/models")["data"][0]["id"]
        self.name = f"{self.model} at {self.url}"

    def generate(self, requests: Sequence[Request], *, done: Done = _ignore) -> list[str]:
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

    def loglikelihoods(self, requests: Sequence[Request], *, done: Done = _ignore) -> list[list[float]]:
        raise ValueError("a server gives no likelihoods of prompts with pictures; leave --scoring loglikelihood out")

    def prompt_tokens(self, prompt: Document) -> int:
        return 0  # only the server has the tokenizer


def open_model(what: str, *, model: str = "", with_images: bool = True, precision: Precision = "auto") -> Model:
    """The model that `what` names: a run's folder, hf:FOLDER, or the http://... of a server.

    `model` is its name on the server. `with_images`: prompts will have images. `precision` is that of a run.

    Raises:
        ValueError: there is no model that can answer.
    """
    if precision != "auto" and what.startswith(("http://", "https://", "hf:")):
        raise ValueError(f"--precision is for mm1's runs; {what} computes in the type of its own weights, leave it out")
    if what.startswith(("http://", "https://")):
        return HttpModel(what, model=model)
    if what.startswith("hf:"):
        return HfModel(Path(what.removeprefix("hf:")))
    loaded = load_for_use(Path(what), precision=precision)
    if with_images and not loaded.sees:
        raise ValueError(f"{what} holds a language model, which takes no pictures; --tasks text scores it")
    return Ours(loaded.model, loaded.tokenizer, name=model_name(loaded))


def model_name(loaded: Loaded) -> str:
    """Step, weights, tokenizer and precision of a run; another training in the same folder has another name."""
    index = loaded.folder / "checkpoints" / f"step-{loaded.step}" / "whole.json"
    precision = PRECISIONS[loaded.model.decoder.embedding.weight.dtype]
    return f"step {loaded.step}, weights {_digest([index])}, tokenizer {loaded.tokenizer.fingerprint}, {precision}"


def _data_url(image: Image) -> dict[str, Any]:
    with Pillow.open(io.BytesIO(image.data)) as opened:
        kind, data = (opened.format or "png").lower(), image.data
        as_stored = image.box is None and orientation(opened, image.data) == 1
    if not as_stored:
        file = io.BytesIO()
        _picture(image).save(file, format="PNG")
        kind, data = "png", file.getvalue()
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{base64.b64encode(data).decode()}"}}


def _picture(image: Image) -> Pillow.Image:
    """The pixels of the image, upright, in RGB and at full resolution."""
    with Pillow.open(io.BytesIO(image.data)) as opened:
        picture = upright(opened, image.data).convert("RGB")
    return picture if image.box is None else picture.crop(image.box)


def prompt_text(prompt: Document) -> str:
    """The prompt for people to read: marks by name, images by the hash of their bytes and their box."""
    parts = []
    for piece in prompt.pieces:
        if isinstance(piece, Image):
            box = "" if piece.box is None else f" {','.join(map(str, piece.box))}"
            box += "" if piece.in_tiles is None else " in tiles" if piece.in_tiles else " overview"
            parts.append(f"<image {hashlib.sha256(piece.data).hexdigest()[:8]}{box}>")
        else:
            parts.append(piece.text if isinstance(piece, Text) else f"<|{piece.name}|>")
    return "".join(parts)


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:12]

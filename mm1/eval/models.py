"""Who answers: our model, a `transformers` model from a folder, or a server that speaks OpenAI's protocol.

All take a prompt as a Document; the harness does not know which of them it asks.
"""

import base64
import hashlib
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image as Pillow

from mm1.checkpoint import Loaded, load_for_use
from mm1.data.chat import messages
from mm1.data.tokenizer import Tokenizer
from mm1.document import Document, Image, Mark, Text
from mm1.generate.prompt import PICTURES_AT_ONCE
from mm1.generate.writer import Writer, until
from mm1.hf.files import modelling_file
from mm1.model.mllm import MLLM

Done = Callable[[int], None]


class Answerer(Protocol):
    """A model as the harness sees it.

    `name` tells one set of weights from another. `write` gives what follows each prompt, up to a stop string,
    greedily or with so many `beams`; `likelihoods` nats per token of each choice behind its prompt; `features`
    [pictures, width].
    """

    @property
    def name(self) -> str: ...

    def write(
        self, prompts: Sequence[Document], *, stops: Sequence[str], longest: int, done: Done, beams: int = 1
    ) -> list[str]: ...

    def likelihoods(
        self, prompts: Sequence[Document], *, choices: Sequence[Sequence[str]], done: Done
    ) -> list[list[float]]: ...

    def features(self, images: Sequence[Image]) -> np.ndarray: ...

    def places(self, prompt: Document) -> int: ...


class Ours:
    """A model of mm1; `rows` prompts are answered side by side."""

    def __init__(self, model: MLLM, tokenizer: Tokenizer, *, name: str, rows: int = 32):
        self.model, self.tokenizer, self.name, self.rows = model, tokenizer, name, rows
        self.writer = Writer(model, tokenizer, rows=rows)

    def write(
        self, prompts: Sequence[Document], *, stops: Sequence[str], longest: int, done: Done, beams: int = 1
    ) -> list[str]:
        encoded = [self.writer.encode(prompt) for prompt in prompts]
        return self.writer.write(encoded, stops=stops, longest=longest, done=done, beams=beams)

    def likelihoods(
        self, prompts: Sequence[Document], *, choices: Sequence[Sequence[str]], done: Done
    ) -> list[list[float]]:
        pairs = []
        for document, texts in zip(prompts, choices, strict=True):
            asked = self.writer.prompt(self.writer.encode(document))
            lead = "" if isinstance(document.pieces[-1], Mark) else " "
            pairs += [(asked, self.tokenizer.encode(lead + text)) for text in texts]
        # all at once: shots and questions in common are computed once
        scores = iter(self.writer.engine.score(pairs))
        done(len(prompts))
        return [[one.log_probability / one.tokens for one in islice(scores, len(texts))] for texts in choices]

    def features(self, images: Sequence[Image]) -> np.ndarray:
        parts = []
        for start in range(0, len(images), PICTURES_AT_ONCE):
            pictures = [self.writer.picture(image.data) for image in images[start : start + PICTURES_AT_ONCE]]
            parts.append(self.writer.engine.features.of(pictures).mean(dim=1).float().cpu().numpy())
        return np.concatenate(parts)

    def places(self, prompt: Document) -> int:
        return len(self.writer.encode(prompt).tokens)


class HubModel:
    """An image-text-to-text model of `transformers` from its folder, one prompt at a time."""

    def __init__(self, folder: Path):
        try:
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise ValueError(f"hf: models need transformers ({error}); pip install 'mm1[hf]'") from error
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} has no config.json; hf: takes the folder of a transformers model")
        if (folder / "checkpoints").is_dir():
            raise ValueError(f"{folder} is a run of mm1; give it without hf:")
        ours = modelling_file()  # beside an export of mm1; other people's code is asked about, as `transformers` does
        known = (folder / ours.name).is_file() and (folder / ours.name).read_bytes() == ours.read_bytes()
        trusted = {"trust_remote_code": True} if known else {}
        try:
            self.processor = AutoProcessor.from_pretrained(folder, **trusted)
            self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", **trusted).eval()
        except (ValueError, OSError) as error:
            why = str(error).strip().splitlines()[0]
            raise ValueError(f"transformers opens {folder} as no model of images and text: {why}") from error
        if torch.cuda.is_available():
            self.model = self.model.to("cuda")
        self.folder = folder
        self.name = f"{folder.name}, weights {_digest(sorted(folder.glob('*.safetensors')))}"

    @torch.inference_mode()
    def write(
        self, prompts: Sequence[Document], *, stops: Sequence[str], longest: int, done: Done, beams: int = 1
    ) -> list[str]:
        written = []
        for prompt in prompts:
            inputs = self._inputs(prompt)
            options = {"stop_strings": list(stops), "tokenizer": self.processor.tokenizer} if stops else {}
            tokens = self.model.generate(**inputs, max_new_tokens=longest, do_sample=False, num_beams=beams, **options)
            text = self.processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            written.append(until(text, stops))
            done(1)
        return written

    @torch.inference_mode()
    def likelihoods(
        self, prompts: Sequence[Document], *, choices: Sequence[Sequence[str]], done: Done
    ) -> list[list[float]]:
        found = []
        for prompt, texts in zip(prompts, choices, strict=True):
            lead = "" if isinstance(prompt.pieces[-1], Mark) else " "
            found.append([self._likelihood(prompt, lead + text) for text in texts])
            done(1)
        return found

    def _likelihood(self, prompt: Document, text: str) -> float:
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

    def features(self, images: Sequence[Image]) -> np.ndarray:
        raise ValueError("similar shots need a model that gives features of pictures: one of mm1's runs")

    def places(self, prompt: Document) -> int:
        return int(self._inputs(prompt)["input_ids"].shape[1])

    def _inputs(self, prompt: Document) -> Any:
        pictures = [Pillow.open(io.BytesIO(image.data)).convert("RGB") for image in prompt.images]
        adds = True
        if any(isinstance(piece, Mark) for piece in prompt.pieces):
            if not self.processor.chat_template:
                raise ValueError(
                    f"{self.folder} has no chat template, but task {prompt.source} asks in chat form; "
                    "give --form plain, or another task"
                )
            text = self.processor.apply_chat_template(messages(prompt), add_generation_prompt=True, tokenize=False)
            begin = self.processor.tokenizer.bos_token
            adds = not (begin and text.startswith(begin))  # as `apply_chat_template` does where it tokenizes
        else:
            token = self.processor.image_token
            text = "".join(token if isinstance(piece, Image) else piece.text for piece in prompt.pieces)  # type: ignore[union-attr]
        said = self.processor(text=[text], images=pictures or None, add_special_tokens=adds, return_tensors="pt")
        return said.to(self.model.device)


class Server:
    """A model behind an OpenAI-compatible server: `url` up to and with /v1. The key is OPENAI_API_KEY's."""

    def __init__(self, url: str, *, model: str = "", at_once: int = 8, patience: float = 2.0):
        self.url, self.at_once, self.patience = url.rstrip("/"), at_once, patience
        self.model = model or self._call("/models")["data"][0]["id"]
        self.name = f"{self.model} at {self.url}"

    def write(
        self, prompts: Sequence[Document], *, stops: Sequence[str], longest: int, done: Done, beams: int = 1
    ) -> list[str]:
        if beams > 1:
            raise ValueError("a server writes greedily; leave --beams out")

        def one(prompt: Document) -> str:
            text = self.reply(messages(prompt, pictures=_address), longest=longest, stops=stops)
            done(1)
            return until(text, stops)

        with ThreadPoolExecutor(self.at_once) as pool:
            return list(pool.map(one, prompts))

    def reply(self, said: list[dict[str, Any]], *, longest: int, stops: Sequence[str] = ()) -> str:
        """What the model answers to `said`, a list of messages."""
        asked: dict[str, Any] = {"model": self.model, "messages": said, "max_tokens": longest, "temperature": 0}
        if stops:
            asked["stop"] = list(stops)[:4]  # more than four are refused by OpenAI's own
        return self._call("/chat/completions", asked)["choices"][0]["message"]["content"] or ""

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        for attempt in range(4):
            try:
                asked = urllib.request.Request(self.url + path, data=data, headers=headers)
                with urllib.request.urlopen(asked, timeout=600) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if attempt == 3 or (error.code != 429 and error.code < 500):
                    said = error.read().decode(errors="replace")[:300]
                    raise ValueError(f"{self.url}{path} answered {error.code}: {said}") from error
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                if attempt == 3:
                    raise ValueError(f"{self.url}{path} does not answer ({error}); is the server running?") from error
            time.sleep(self.patience * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def likelihoods(
        self, prompts: Sequence[Document], *, choices: Sequence[Sequence[str]], done: Done
    ) -> list[list[float]]:
        raise ValueError("a server gives no likelihoods of prompts with pictures; leave --scoring loglikelihood out")

    def features(self, images: Sequence[Image]) -> np.ndarray:
        raise ValueError("similar shots need a model that gives features of pictures: one of mm1's runs")

    def places(self, prompt: Document) -> int:
        return 0  # its tokenizer is not known here


def open_answerer(what: str, *, model: str = "", pictures: bool = True) -> Answerer:
    """The model that `what` names: a run's folder, hf:FOLDER, or http://... of a server. `pictures` will be shown.

    Raises:
        ValueError: nothing there that can answer.
    """
    if what.startswith(("http://", "https://")):
        return Server(what, model=model)
    if what.startswith("hf:"):
        return HubModel(Path(what.removeprefix("hf:")))
    loaded = load_for_use(Path(what))
    if pictures and not loaded.sees:
        raise ValueError(f"{what} holds a language model, which takes no pictures; --tasks text scores it")
    return Ours(loaded.model, loaded.tokenizer, name=name_of(loaded))


def name_of(loaded: Loaded) -> str:
    """Step, weights and tokenizer of a run: another training of the same folder has another name."""
    recorded = loaded.folder / "checkpoints" / f"step-{loaded.step}" / "whole.json"
    return f"step {loaded.step}, weights {_digest([recorded])}, tokenizer {loaded.tokenizer.fingerprint}"


def _address(image: Image) -> dict[str, Any]:
    with Pillow.open(io.BytesIO(image.data)) as opened:
        kind = (opened.format or "png").lower()
    data = base64.b64encode(image.data).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}}


def as_text(prompt: Document) -> str:
    """The prompt for people: marks by name, pictures by the hash of their bytes."""
    shown = []
    for piece in prompt.pieces:
        if isinstance(piece, Image):
            shown.append(f"<image {hashlib.sha256(piece.data).hexdigest()[:8]}>")
        else:
            shown.append(piece.text if isinstance(piece, Text) else f"<|{piece.name}|>")
    return "".join(shown)


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:12]

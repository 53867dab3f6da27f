"""The models that evaluation asks: a run of mm1, a folder of `transformers`, or a server with OpenAI's protocol."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mm1.checkpoint import Loaded, load_for_use
from mm1.config.sample import run_folder
from mm1.data.tiles import tile_spec
from mm1.data.tokenizer import Tokenizer
from mm1.dist import Precision
from mm1.document import Document, Image
from mm1.eval.hf_model import HfModel
from mm1.eval.http_model import HttpModel
from mm1.eval.model import Done, Model, Ranked, Reply, Request, digest, ignore
from mm1.generate.request import Score
from mm1.generate.writer import Writer
from mm1.model.mllm import MLLM

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}


class Ours(Model):
    """A model of mm1; `rows` prompts are answered side by side."""

    def __init__(self, model: MLLM, tokenizer: Tokenizer, *, name: str, rows: int = 32):
        self.model, self.tokenizer, self.name, self.rows = model, tokenizer, name, rows
        self.writer = Writer(model, tokenizer, rows=rows)
        self.tiles = not tile_spec(model.config, use=True).whole

    def generate(self, requests: Sequence[Request], *, done: Done = ignore) -> list[Reply]:
        groups: dict[tuple, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[request.stops, request.max_tokens, request.beams].append(number)
        replies = [Reply("")] * len(requests)
        for (stops, max_tokens, beams), numbers in groups.items():
            prompts = [requests[number].prompt for number in numbers]

            def keep(position: int, text: str, numbers: list[int] = numbers) -> None:
                done(numbers[position], Reply(text))

            written = self.writer.write(prompts, max_tokens=max_tokens, stops=stops, beams=beams, done=keep)
            for number, text in zip(numbers, written, strict=True):
                replies[number] = Reply(text)
        return replies

    def loglikelihoods(self, requests: Sequence[Request], *, done: Ranked = ignore) -> list[list[float]]:
        continuations = [[request.continued_by(choice) for choice in request.choices] for request in requests]
        prompts = [request.prompt for request in requests]
        scores = self.writer.score(
            prompts, continuations, done=lambda number, of_request: done(number, _per_token(of_request))
        )
        return [_per_token(of_request) for of_request in scores]

    def features(self, images: Sequence[Image]) -> np.ndarray:
        return self.writer.features(images)

    def prompt_tokens(self, prompt: Document) -> int:
        return self.writer.prompt_tokens(prompt)


def open_model(what: str, *, model: str = "", with_images: bool = True, precision: Precision = "auto") -> Model:
    """The model that `what` names: a run's folder, sample:NAME, hf:FOLDER, or the http://... of a server.

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
    loaded = load_for_use(run_folder(what), precision=precision)
    if with_images and not loaded.sees:
        raise ValueError(f"{what} holds a language model, which takes no pictures; --tasks text scores it")
    return Ours(loaded.model, loaded.tokenizer, name=model_name(loaded))


def model_name(loaded: Loaded) -> str:
    """Step, weights, tokenizer and precision of a run; another training in the same folder has another name."""
    index = loaded.folder / "checkpoints" / f"step-{loaded.step}" / "whole.json"
    precision = PRECISIONS[loaded.model.decoder.embedding.weight.dtype]
    return f"step {loaded.step}, weights {digest([index])}, tokenizer {loaded.tokenizer.fingerprint}, {precision}"


def _per_token(scores: Sequence[Score]) -> list[float]:
    return [score.log_probability / score.tokens for score in scores]

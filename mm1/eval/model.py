"""A model as the harness sees it: requests in, answers out. It does not know which kind of model it asks."""

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from mm1.data.image import upright
from mm1.document import Document, Image, Mark, Text
from mm1.eval.metrics.short_answers import LETTERS

Done = Callable[[int], None]
"""Is called with the number of requests that were answered since its last call."""


def ignore(answered: int) -> None:
    """Take no notice of the answers that come."""


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

    def answer(self, requests: Sequence[Request], *, done: Done = ignore) -> list[str]:
        """The answer to each request: a generated text or, if the request has choices, the letter of the likeliest."""
        open_ended = [request for request in requests if not request.choices]
        multiple_choice = [request for request in requests if request.choices]
        texts = iter(self.generate(open_ended, done=done) if open_ended else [])
        nats = iter(self.loglikelihoods(multiple_choice, done=done) if multiple_choice else [])
        return [LETTERS[int(np.argmax(next(nats)))] if request.choices else next(texts) for request in requests]

    @abstractmethod
    def generate(self, requests: Sequence[Request], *, done: Done = ignore) -> list[str]:
        """The text that the model writes after each prompt, before the first stop string."""

    @abstractmethod
    def loglikelihoods(self, requests: Sequence[Request], *, done: Done = ignore) -> list[list[float]]:
        """For each request the log-likelihood of each choice after the prompt, in nats per token."""

    def features(self, images: Sequence[Image]) -> np.ndarray:
        """Mean image features [images, width]."""
        raise ValueError("similar shots need a model that gives features of pictures: one of mm1's runs")

    @abstractmethod
    def prompt_tokens(self, prompt: Document) -> int:
        """The number of tokens of the prompt, image tokens included; 0 if the model doesn't tell."""


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


def as_pillow(image: Image) -> Pillow.Image:
    """The pixels of the image, upright, in RGB and at full resolution."""
    with Pillow.open(io.BytesIO(image.data)) as opened:
        picture = upright(opened, image.data).convert("RGB")
    return picture if image.box is None else picture.crop(image.box)


def digest(files: Sequence[Path]) -> str:
    """A name for the content of files."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:12]

"""A model as the harness sees it: requests in, answers out. It does not know which kind of model it asks."""

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from mm1.data.image import upright
from mm1.document import Document, Image, Mark, Text
from mm1.eval.metrics.short_answers import LETTERS


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, and how it is to be answered.

    stops       strings that end a generated answer
    max_tokens  the longest generated answer
    beams       beams of the search when generating; 1 is greedy
    choices     the answer is the letter of the likeliest of these texts that isn't empty; none: it is generated
    """

    prompt: Document
    stops: tuple[str, ...] = ()
    max_tokens: int = 32
    beams: int = 1
    choices: tuple[str, ...] = ()

    def continued_by(self, choice: str) -> str:
        """The text of a choice as it follows the prompt: after a space, unless the prompt ends with a mark."""
        return choice if isinstance(self.prompt.pieces[-1], Mark) else f" {choice}"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model answered. `problem` says why there is no answer: its name, a colon, and more; the text is empty."""

    text: str
    problem: str = ""


REFUSED = "refused"
"""The name of the problem of a request that the model does not take, but may take another time."""


def name_of(problem: str) -> str:
    """The name under which a problem is counted."""
    return problem.partition(":")[0]


Done = Callable[[int, Reply], None]
"""Is called with the number and the reply of each request as soon as it is answered, in any order."""

Ranked = Callable[[int, list[float]], None]
"""Is called with the number of each request and the log-likelihoods of its choices as soon as they are known."""


def ignore(number: int, reply: Any) -> None:
    """Take no notice of a reply."""


class Model(ABC):
    """A model as the harness sees it. `name` tells one set of weights from another.

    `tiles` says whether it cuts images into tiles by itself, as its config's tiling says.
    """

    name: str
    tiles: bool = False

    def answer(self, requests: Sequence[Request], *, done: Done = ignore) -> list[Reply]:
        """The reply to each request: a generated text or, if the request has choices, the letter of the likeliest."""
        replies: dict[int, Reply] = {}
        open_ended = [number for number, request in enumerate(requests) if not request.choices]
        multiple_choice = [number for number, request in enumerate(requests) if request.choices]

        def keep(number: int, reply: Reply) -> None:
            replies[number] = reply
            done(number, reply)

        def rank(number: int, nats: list[float]) -> None:
            choices = requests[multiple_choice[number]].choices
            letters = [letter for letter, choice in zip(LETTERS, choices, strict=False) if choice]
            keep(multiple_choice[number], Reply(letters[int(np.argmax(nats))]))

        if open_ended:
            texts = [requests[number] for number in open_ended]
            self.generate(texts, done=lambda number, reply: keep(open_ended[number], reply))
        if multiple_choice:
            ranked = [requests[number] for number in multiple_choice]
            filled = [replace(one, choices=tuple(choice for choice in one.choices if choice)) for one in ranked]
            self.loglikelihoods(filled, done=rank)
        return [replies[number] for number in range(len(requests))]

    @abstractmethod
    def generate(self, requests: Sequence[Request], *, done: Done = ignore) -> list[Reply]:
        """What the model writes after each prompt, before the first stop string."""

    @abstractmethod
    def loglikelihoods(self, requests: Sequence[Request], *, done: Ranked = ignore) -> list[list[float]]:
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


def prompt_hash(prompt: Document) -> str:
    """A name for a prompt: the hash of its texts, marks and images."""
    digest = hashlib.sha256()
    for piece in prompt.pieces:
        kind = type(piece).__name__
        data = piece.text if isinstance(piece, Text) else piece.name if isinstance(piece, Mark) else piece.data
        digest.update(hashlib.sha256(data if isinstance(data, bytes) else f"{kind} {data}".encode()).digest())
        if isinstance(piece, Image) and piece.box is not None:
            digest.update(f"box {piece.box}".encode())
        if isinstance(piece, Image) and piece.in_tiles is not None:
            digest.update(f"in tiles {piece.in_tiles}".encode())
    return digest.hexdigest()[:16]

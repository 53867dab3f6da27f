"""Answers and losses of a model, in batches, each picture encoded once."""

import functools
import hashlib
import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch

from mm1.data.encode import encode
from mm1.data.image import ImageError, load
from mm1.data.tokenizer import Tokenizer
from mm1.document import Document, Encoded, Image
from mm1.generate.beam import Beams, search_all
from mm1.generate.engine import Engine
from mm1.generate.prompt import Picture, Prompt
from mm1.generate.sampling import Decoding
from mm1.model.mllm import MLLM

log = logging.getLogger("mm1")


class Writer:
    """A model that answers prompts, `rows` at a time. Pictures and prompts it has met it remembers for a while."""

    def __init__(self, model: MLLM, tokenizer: Tokenizer, *, rows: int):
        self.tokenizer = tokenizer
        self.engine = Engine(model, rows=rows)
        self.image_tokens = model.config.connector.tokens
        self._image_size = model.config.vision.image_size

    def encode(self, prompt: Document) -> Encoded:
        """The prompt in the model's words, open at its end."""
        return encode(prompt, self.tokenizer, image_tokens=self.image_tokens, end=False)

    def write(
        self,
        prompts: Sequence[Encoded],
        *,
        stops: Sequence[str],
        longest: int,
        done: Callable[[int], None] = lambda rows: None,
        beams: int = 1,
    ) -> list[str]:
        """What the model writes after each prompt, up to a stop string or the end token: greedily, or by a search.

        `done` hears how many prompts were answered since it last heard.
        """
        decoding = Decoding(
            tokens=longest,
            stop_tokens=self.tokenizer.ends,
            stopped=(lambda tokens: until(text := self.tokenizer.decode(tokens), stops) != text) if stops else None,
        )
        asked = [self.prompt(prompt) for prompt in prompts]
        if beams > 1:
            completions = search_all(
                self.engine.model,
                asked,
                decoding=decoding,
                beams=Beams(beams),
                features=self.engine.features,
                done=lambda number: done(1),
            )
        else:
            completions = self.engine.generate(asked, decoding, done=lambda number: done(1))
        return [until(self.tokenizer.decode(completion.tokens), stops) for completion in completions]

    def losses(self, documents: Sequence[Document], *, done: Callable[[int], None] = lambda rows: None) -> np.ndarray:
        """Nats per token of each document's trained text after what stands before it."""
        losses = []
        for start in range(0, len(documents), self.engine.rows):
            texts = [
                encode(document, self.tokenizer, image_tokens=self.image_tokens)
                for document in documents[start : start + self.engine.rows]
            ]
            heads = [Encoded(text.tokens[~text.train], text.train[~text.train], text.images) for text in texts]
            answers = [text.tokens[text.train].tolist() for text in texts]
            pairs = [(self.prompt(head), answer) for head, answer in zip(heads, answers, strict=True)]
            losses += [-score.log_probability / score.tokens for score in self.engine.score(pairs)]
            done(len(pairs))
        return np.array(losses)

    def prompt(self, encoded: Encoded) -> Prompt:
        """The prompt with its pictures, decoded when they must be encoded."""
        return Prompt(encoded.tokens.tolist(), [self.picture(image) for image in encoded.images])

    def picture(self, image: Image) -> Picture:
        """An image of a document as a picture of a prompt."""
        name = hashlib.sha256(image.data).hexdigest()
        if image.box is not None:
            name = f"{name} {image.box}"
        return Picture(name, functools.partial(self._pixels, image))

    def _pixels(self, image: Image) -> torch.Tensor:
        try:
            return torch.from_numpy(load(image.data, self._image_size, box=image.box))
        except ImageError as error:
            log.warning("grey picture instead of %s: %s", hashlib.sha256(image.data).hexdigest()[:16], error)
            return torch.full((3, self._image_size, self._image_size), 128, dtype=torch.uint8)


def until(text: str, stops: Sequence[str]) -> str:
    """`text` before the first stop string in it."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)]

"""Answers and losses of a model, in batches, each picture encoded once."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mm1.data.encode import encode
from mm1.data.image import ImageError, load
from mm1.data.tokenizer import Tokenizer
from mm1.document import Document, Encoded, Text
from mm1.eval.fewshot import Example
from mm1.eval.metrics import Interval, bootstrap, paired_difference
from mm1.model.generate import Decoding, Prompt, generate, score
from mm1.model.mllm import MLLM

log = logging.getLogger("mm1")

MEMORY = 2 << 30
"""Bytes of encoded pictures held, on the CPU."""

PICTURES_AT_ONCE = 64
"""Pictures in one pass of the encoder."""


@dataclass(frozen=True, slots=True)
class CaptionLoss:
    """Nats per token of the right text after its own picture and after another one's; means over texts.

    `margin` is wrong - right: above 0 when the right picture helps.
    """

    task: str
    texts: int
    right: Interval
    wrong: Interval
    margin: Interval
    model_name: str


class Writer:
    """A model that answers prompts, `rows` at a time."""

    def __init__(self, model: MLLM, tokenizer: Tokenizer, *, rows: int):
        self.model, self.tokenizer, self.rows = model, tokenizer, rows
        self.image_tokens = model.config.connector.tokens
        self._image_size = model.config.vision.image_size
        self._features: dict[str, torch.Tensor] = {}

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
    ) -> list[str]:
        """What the model writes after each prompt, greedily, up to a stop string or the end token.

        Prompts of like length go side by side. `done` hears of every finished batch.
        """
        decoding = Decoding(
            tokens=longest,
            stop_tokens=frozenset([self.tokenizer.end]),
            stopped=(lambda tokens: _first_stop(self.tokenizer.decode(tokens), stops) >= 0) if stops else None,
        )
        written = [""] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number].tokens))
        for start in range(0, len(order), self.rows):
            numbers = order[start : start + self.rows]
            batch = self._prompts([prompts[number] for number in numbers])
            for number, completion in zip(
                numbers,
                generate(self.model, batch, image_token=self.tokenizer.image, decoding=decoding),
                strict=True,
            ):
                text = self.tokenizer.decode(completion.tokens)
                stop = _first_stop(text, stops)
                written[number] = text if stop < 0 else text[:stop]
            done(len(numbers))
        return written

    def losses(self, examples: Sequence[Example], *, done: Callable[[int], None] = lambda rows: None) -> np.ndarray:
        """Nats per token of each example's first answer right after its picture, as captions are trained."""
        losses = []
        for start in range(0, len(examples), self.rows):
            texts = [
                encode(
                    Document((example.image, Text(example.answers[0]))),
                    self.tokenizer,
                    image_tokens=self.image_tokens,
                )
                for example in examples[start : start + self.rows]
            ]
            heads = [Encoded(text.tokens[~text.train], text.train[~text.train], text.images) for text in texts]
            answers = [text.tokens[text.train].tolist() for text in texts]
            pairs = list(zip(self._prompts(heads), answers, strict=True))
            scores = score(self.model, pairs, image_token=self.tokenizer.image)
            losses += [-found.log_probability / found.tokens for found in scores]
            done(len(pairs))
        return np.array(losses)

    def _prompts(self, batch: Sequence[Encoded]) -> list[Prompt]:
        """The prompts with features for pixels; each distinct picture is encoded once while remembered."""
        names = [[hashlib.sha256(data).hexdigest() for data in encoded.images] for encoded in batch]
        pictures = {
            name: data
            for encoded, own in zip(batch, names, strict=True)
            for name, data in zip(own, encoded.images, strict=True)
        }
        self._remember({name: data for name, data in pictures.items() if name not in self._features})
        prompts = [
            Prompt(
                encoded.tokens.tolist(),
                features_NSD=torch.stack([self._features[name] for name in own]) if own else None,
            )
            for encoded, own in zip(batch, names, strict=True)
        ]
        first = next(iter(self._features.values()), None)
        while first is not None and len(self._features) > MEMORY // first.nbytes:
            del self._features[next(iter(self._features))]  # the oldest
        return prompts

    @torch.inference_mode()
    def _remember(self, pictures: dict[str, bytes]) -> None:
        device = self.model.decoder.embedding.weight.device
        names = list(pictures)
        for start in range(0, len(names), PICTURES_AT_ONCE):
            part = names[start : start + PICTURES_AT_ONCE]
            pixels_NCYX = np.stack([self._pixels(pictures[name], name) for name in part])
            features_NSD = self.model.encode_images(torch.from_numpy(pixels_NCYX).to(device)).cpu()
            self._features |= dict(zip(part, features_NSD, strict=True))

    def _pixels(self, data: bytes, name: str) -> np.ndarray:
        try:
            return load(data, self._image_size)
        except ImageError as error:
            log.warning("grey picture instead of %s: %s", name[:16], error)
            return np.full((3, self._image_size, self._image_size), 128, np.uint8)


def caption_loss(
    writer: Writer,
    right: Sequence[Example],
    *,
    wrong: Sequence[Example],
    task: str,
    model_name: str,
    seed: int,
    done: Callable[[int], None] = lambda rows: None,
) -> CaptionLoss:
    """How much the right picture lowers the loss of its text; `wrong` is the same with pictures exchanged."""
    with_right, with_wrong = writer.losses(right, done=done), writer.losses(wrong, done=done)
    return CaptionLoss(
        task=task,
        texts=len(right),
        right=bootstrap(with_right, seed=seed),
        wrong=bootstrap(with_wrong, seed=seed),
        margin=paired_difference(with_wrong, with_right, seed=seed),
        model_name=model_name,
    )


def _first_stop(text: str, stops: Sequence[str]) -> int:
    """Where the first stop string begins; -1 where there is none."""
    places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return min(places, default=-1)

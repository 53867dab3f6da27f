"""An image encoder that is scored: features of pictures, and of texts if it was trained by contrast."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mm1 import dist
from mm1.checkpoint import load_part, newest
from mm1.config import run as config
from mm1.config.model import ModelConfig
from mm1.data.encode import encode_many
from mm1.data.image import load
from mm1.data.recorded import recorded_text
from mm1.data.tiles import tile_spec
from mm1.data.tokenizer import Tokenizer
from mm1.document import IGNORED, Batch, Document, Image
from mm1.hf.encoder import read_encoder
from mm1.model.vision import Vision
from mm1.objectives.contrastive import Contrastive, ContrastiveModel
from mm1.objectives.index import objective_of

AT_ONCE = 32
"""Pictures or pairs of one forward pass."""


@dataclass(frozen=True, slots=True)
class PairFeatures:
    """Features of pictures and of their texts, of length 1, in fp32 on the CPU."""

    image_ND: torch.Tensor
    text_ND: torch.Tensor


class Encoder:
    """The image encoder of a run or of a published folder, in evaluation mode on this process's device."""

    def __init__(self, vision: Vision, *, name: str, pairs: ContrastiveModel | None, tokenizer: Tokenizer | None):
        """`pairs` and its `tokenizer` are of an encoder trained by contrast."""
        self.vision, self.name = vision, name
        self._pairs, self._tokenizer = pairs, tokenizer

    @property
    def has_text_tower(self) -> bool:
        return self._pairs is not None

    @torch.no_grad()
    def patches(self, images: Sequence[Image]) -> torch.Tensor:
        """Features [N, P, E] of the patches, of the layer that a language model would see, in fp32 on the CPU.

        Raises:
            ImageError: a picture can't be read.
        """
        parts = [self.vision(pixels_NCYX).float().cpu() for pixels_NCYX in self._pixels(images)]
        return torch.cat(parts)

    @torch.no_grad()
    def summaries(self, images: Sequence[Image]) -> torch.Tensor:
        """One feature [N, E] for each picture: the class token, or the mean of the patches; in fp32 on the CPU.

        Raises:
            ImageError: a picture can't be read.
        """
        last = self.vision.config.feature_layer == -1
        summary = self.vision.summary if last else lambda pixels_NCYX: self.vision(pixels_NCYX).mean(1)
        return torch.cat([summary(pixels_NCYX).float().cpu() for pixels_NCYX in self._pixels(images)])

    @torch.no_grad()
    def pairs(self, documents: Sequence[Document]) -> PairFeatures:
        """The features of documents of one picture and a text, as in training.

        Raises:
            ImageError: a picture can't be read.
        """
        assert self._pairs is not None
        assert self._tokenizer is not None
        images, texts = [], []
        for part in _groups(documents, AT_ONCE):
            batch = _batch(part, self._tokenizer, self._pairs.config)
            pairs = self._pairs(batch.to(self._pairs.log_scale.device))
            images.append(pairs.image_ND.cpu())
            texts.append(pairs.text_ND.cpu())
        return PairFeatures(torch.cat(images), torch.cat(texts))

    def _pixels(self, images: Sequence[Image]) -> Iterator[torch.Tensor]:
        size, device = self.vision.config.image_size, self.vision.patch.weight.device
        for part in _groups(images, AT_ONCE):
            pixels = np.stack([load(image.data, size, box=image.box) for image in part])
            yield torch.from_numpy(pixels).to(device)


def open_encoder(address: str, *, precision: dist.Precision = "auto") -> Encoder:
    """The encoder of the run in a folder, trained or imported, or of `hf:FOLDER`, whose files `mm1 import` reads.

    Raises:
        ConfigError, CheckpointError, ValueError: there is no run or no encoder.
    """
    device = dist.device()
    dtype = dist.resolve_precision(precision, device)
    if address.startswith("hf:"):
        vision_config, state = read_encoder(address.removeprefix("hf:"))
        vision = Vision(vision_config)
        vision.load_state_dict(state)
        return Encoder(vision.to(device, dtype).eval(), name=address, pairs=None, tokenizer=None)
    folder = Path(address)
    run = config.load(folder / "config.json")
    name = f"step {newest(folder).step} of {address}"
    kind = objective_of(run)
    if not issubclass(kind, Contrastive):
        model = torch.nn.Module()
        model.vision = Vision(run.model.vision)
        load_part(folder, model, "vision")
        return Encoder(model.vision.to(device, dtype).eval(), name=name, pairs=None, tokenizer=None)
    pairs = ContrastiveModel(run.model, kind.kind)
    load_part(folder, pairs)
    pairs.to(device, dtype).eval()
    return Encoder(pairs.vision, name=name, pairs=pairs, tokenizer=recorded_text(folder).tokenizer)


def _batch(documents: Sequence[Document], tokenizer: Tokenizer, model: ModelConfig) -> Batch:
    """Documents of one picture each, a sequence each, filled up to the longest."""
    encoded = encode_many(documents, tokenizer, tile=tile_spec(model))
    length = max(len(document.tokens) for document in encoded)
    tokens_BT = torch.zeros(len(encoded), length, dtype=torch.int64)
    real_BT = torch.zeros_like(tokens_BT)
    for row, document in enumerate(encoded):
        tokens_BT[row, : len(document.tokens)] = torch.from_numpy(document.tokens.astype(np.int64))
        real_BT[row, : len(document.tokens)] = 1
    size = model.vision.image_size
    images = [image for document in documents for image in document.images]
    pixels = np.stack([load(image.data, size, box=image.box) for image in images])
    return Batch(
        tokens_BT=tokens_BT,
        targets_BT=torch.full_like(tokens_BT, IGNORED),
        document_BT=real_BT,
        position_BT=torch.arange(length).repeat(len(encoded), 1),
        images_NCYX=torch.from_numpy(pixels),
        images=len(images),
        source_B=torch.zeros(len(encoded), dtype=torch.int64),
        sequence_B=torch.arange(len(encoded)),
    )


def _groups(things: Sequence, size: int) -> Iterator[list]:
    rest = iter(things)
    while part := list(islice(rest, size)):
        yield part


def unit(x_ND: torch.Tensor) -> torch.Tensor:
    """Each row of length 1."""
    return F.normalize(x_ND, dim=-1)

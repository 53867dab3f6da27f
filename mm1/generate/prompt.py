"""A prompt of tokens and images, and the features of images."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mm1.config.model import ModelConfig
from mm1.generate.threads import one_thread
from mm1.model.mllm import MLLM

FEATURE_MEMORY = 2 << 30
"""Bytes of image features kept, on the CPU."""

IMAGES_PER_PASS = 64
"""Images in one pass of the encoder."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image, identified by its content's `name`. `pixels` (uint8 [C, Y, X]) is called if it has to be encoded."""

    name: str
    pixels: Callable[[], torch.Tensor]


def picture(pixels_CYX: torch.Tensor) -> Picture:
    """A `Picture` of these pixels, named by their hash."""
    digest = hashlib.sha256(pixels_CYX.cpu().contiguous().numpy().tobytes())
    return Picture(digest.hexdigest(), lambda: pixels_CYX)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens, with the image token at every position of an image, and the images in order.

    `features` numbers the feature of each image token among those of all images; without it image tokens take them in
    order, each once.
    """

    tokens: Sequence[int]
    images: Sequence[Picture] = ()
    features: np.ndarray | None = None

    def part(self, start: int, stop: int, config: ModelConfig) -> "Prompt":
        """The positions [start, stop), with the images that they show a part of."""
        is_image = np.array(self.tokens[:stop], np.int64) == config.image_token
        features = self.feature_numbers(config)[is_image[:start].sum() : is_image.sum()]
        size = config.tile_features
        first, last = (int(features.min()) // size, int(features.max()) // size) if len(features) else (0, -1)
        return Prompt(self.tokens[start:stop], self.images[first : last + 1], features - first * size)

    def feature_numbers(self, config: ModelConfig) -> np.ndarray:
        """`features`, also where they are in order."""
        return np.arange(len(self.images) * config.tile_features) if self.features is None else self.features


class Features:
    """Image features [S, D] by image, kept up to `memory` bytes; the least recently used are dropped first."""

    def __init__(self, model: MLLM, *, memory: int = FEATURE_MEMORY):
        self.model, self.memory = model, memory
        self.queries = self.hits = 0  # images that were looked up, and that were there
        self.held = 0  # bytes
        self._features: OrderedDict[str, torch.Tensor] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        """Whether the features of the image of this name are kept."""
        return name in self._features

    @torch.inference_mode()
    def of(self, pictures: Sequence[Picture]) -> torch.Tensor:
        """Features [N, S, D] of the pictures in order. New ones are encoded, each once."""
        weight = self.model.decoder.embedding.weight
        new = {one.name: one for one in pictures if one.name not in self._features}
        names = list(new)
        self.queries += len(pictures)
        self.hits += len(pictures) - len(names)
        for start in range(0, len(names), IMAGES_PER_PASS):
            part = names[start : start + IMAGES_PER_PASS]
            with one_thread():  # small pictures take a third longer on two, and no less on a pool of threads
                pixels_NCYX = torch.stack([new[name].pixels() for name in part])
            features_NSD = self.model.encode_images(pixels_NCYX.to(weight.device)).cpu()
            # clones, so that dropping one frees its memory
            self._features |= {name: x_SD.clone() for name, x_SD in zip(part, features_NSD, strict=True)}
        for one in pictures:
            self._features.move_to_end(one.name)
        if not pictures:
            return weight.new_zeros(0, self.model.config.tile_features, weight.shape[1])
        features_NSD = torch.stack([self._features[one.name] for one in pictures]).to(weight)
        while len(self._features) * features_NSD[0].nbytes > self.memory:
            self._features.popitem(last=False)
        self.held = len(self._features) * features_NSD[0].nbytes
        return features_NSD


def embed_from(model: MLLM, prompts: Sequence[Prompt], starts: Sequence[int], *, features: Features) -> torch.Tensor:
    """The decoder's input [B, T, D] for each prompt's positions from its start on, padded with its last one."""
    config = model.config
    parts = [prompt.part(start, len(prompt.tokens), config) for prompt, start in zip(prompts, starts, strict=True)]
    news, weight = [part.tokens for part in parts], model.decoder.embedding.weight
    longest = max(map(len, news))
    if not any(part.images for part in parts):
        rows = [[*tokens, *[tokens[-1]] * (longest - len(tokens))] for tokens in news]
        return model.decoder.embed(torch.tensor(rows, device=weight.device))
    padding = 0 if config.image_token else 1  # any token but the image token: it is replaced below
    rows = [[*tokens, *[padding] * (longest - len(tokens))] for tokens in news]
    tokens_BT = torch.tensor(rows)
    images, numbers = 0, []
    for part in parts:
        numbers.append(part.feature_numbers(config) + images * config.tile_features)
        images += len(part.images)
    feature_BT = torch.zeros_like(tokens_BT)
    feature_BT[tokens_BT == config.image_token] = torch.from_numpy(np.concatenate(numbers))
    features_NSD = features.of([picture for part in parts for picture in part.images])
    x_BTD = model.embed(tokens_BT.to(weight.device), features_NSD, feature_BT.to(weight.device))
    if all(len(tokens) == longest for tokens in news):
        return x_BTD
    last_B1 = torch.tensor([[len(tokens) - 1] for tokens in news], device=weight.device)
    index_BT = torch.arange(longest, device=weight.device).minimum(last_B1)
    return x_BTD[torch.arange(len(news), device=weight.device)[:, None], index_BT]

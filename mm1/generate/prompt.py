"""What a model is asked: tokens with pictures among them, and the pictures' features, each made once."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mm1.config.model import ModelConfig
from mm1.model.mllm import MLLM

FEATURE_MEMORY = 2 << 30
"""Bytes of encoded pictures held, on the CPU."""

PICTURES_AT_ONCE = 64
"""Pictures in one pass of the encoder."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture by the name of its content. `pixels` (uint8 [C, Y, X]) is called when it has to be encoded."""

    name: str
    pixels: Callable[[], torch.Tensor]


def picture(pixels_CYX: torch.Tensor) -> Picture:
    """Pixels as a `Picture`, named after themselves."""
    digest = hashlib.sha256(pixels_CYX.cpu().contiguous().numpy().tobytes())
    return Picture(digest.hexdigest(), lambda: pixels_CYX)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens with the image token at every image place, and the images in the order of their places."""

    tokens: Sequence[int]
    images: Sequence[Picture] = ()


def content(prompt: Prompt, config: ModelConfig) -> np.ndarray:
    """What stands at each place, as int64: a token, or below 0 a number of the picture's name.

    Two prompts whose contents begin alike have the same keys and values there.

    Raises:
        ValueError: the images don't fill the image places, or there is no token at all.
    """
    found = np.array(prompt.tokens, np.int64)
    image_tokens = config.connector.tokens
    places = found == config.image_token
    if places.sum() != len(prompt.images) * image_tokens or not len(found):
        raise ValueError(
            f"a prompt has {len(found)} tokens, of them {places.sum()} image places, and {len(prompt.images)} images "
            f"of {image_tokens} places each; every image needs exactly its places"
        )
    numbers = [int.from_bytes(hashlib.sha256(one.name.encode()).digest()[:7]) for one in prompt.images]
    found[places] = -1 - np.repeat(np.array(numbers, np.int64), image_tokens)
    return found


def common_prefix(ours: np.ndarray, theirs: np.ndarray) -> int:
    """How many places two contents have in common from the first on."""
    shorter = min(len(ours), len(theirs))
    differs = np.flatnonzero(ours[:shorter] != theirs[:shorter])
    return int(differs[0]) if len(differs) else shorter


def whole_images(found: np.ndarray, places: int, *, image_tokens: int) -> int:
    """`places`, or fewer, so that the first of a content tear no picture apart."""
    return places - int((found[:places] < 0).sum()) % image_tokens


class Features:
    """The features [S, D] of pictures, the least recently used forgotten beyond `memory` bytes."""

    def __init__(self, model: MLLM, *, memory: int = FEATURE_MEMORY):
        self.model, self.memory = model, memory
        self._known: OrderedDict[str, torch.Tensor] = OrderedDict()

    @torch.inference_mode()
    def of(self, pictures: Sequence[Picture]) -> torch.Tensor:
        """Features [N, S, D] of the pictures in order; those not known are encoded, equal ones once."""
        weight = self.model.decoder.embedding.weight
        missing = {one.name: one for one in pictures if one.name not in self._known}
        names = list(missing)
        for start in range(0, len(names), PICTURES_AT_ONCE):
            part = names[start : start + PICTURES_AT_ONCE]
            pixels_NCYX = torch.stack([missing[name].pixels() for name in part])
            features_NSD = self.model.encode_images(pixels_NCYX.to(weight.device)).cpu()
            # cut apart, so that forgetting one frees it
            self._known |= {name: x_SD.clone() for name, x_SD in zip(part, features_NSD, strict=True)}
        for one in pictures:
            self._known.move_to_end(one.name)
        if not pictures:
            return weight.new_zeros(0, self.model.config.connector.tokens, weight.shape[1])
        found = torch.stack([self._known[one.name] for one in pictures]).to(weight)
        while len(self._known) * found[0].nbytes > self.memory:
            self._known.popitem(last=False)
        return found


def embed_from(model: MLLM, prompts: Sequence[Prompt], starts: Sequence[int], *, features: Features) -> torch.Tensor:
    """The decoder's input [B, T, D] for each prompt's places from its start on, filled up with its last one.

    A start never falls inside an image's places.
    """
    image_tokens = model.config.connector.tokens
    news = [prompt.tokens[start:] for prompt, start in zip(prompts, starts, strict=True)]
    pictures: list[Picture] = []
    for prompt, tokens in zip(prompts, news, strict=True):
        count = sum(token == model.config.image_token for token in tokens) // image_tokens
        pictures += prompt.images[len(prompt.images) - count :]
    weight = model.decoder.embedding.weight
    longest = max(map(len, news))
    other = 0 if model.config.image_token else 1  # any token but the image's: it is replaced below
    rows = [[*tokens, *[other] * (longest - len(tokens))] for tokens in news]
    tokens_BT = torch.tensor(rows, device=weight.device)
    x_BTD = model.embed(tokens_BT, features.of(pictures))
    if all(len(tokens) == longest for tokens in news):
        return x_BTD
    last_B1 = torch.tensor([[len(tokens) - 1] for tokens in news], device=weight.device)
    place_BT = torch.arange(longest, device=weight.device).minimum(last_B1)
    return x_BTD[torch.arange(len(news), device=weight.device)[:, None], place_BT]

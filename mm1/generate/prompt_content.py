"""What can be compared of two prompts: what stands at each position, and where a beginning may end."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mm1.config.model import ModelConfig
from mm1.generate.prefix_index import block_keys, whole_blocks
from mm1.generate.prompt import Prompt


def content(prompt: Prompt, config: ModelConfig) -> np.ndarray:
    """What stands at each position, as int64: a token, or a negative number made of the image's name and the feature.

    Where two prompts begin with the same content, their keys and values are the same.

    Raises:
        ValueError: the images don't fit the image tokens, or the prompt is empty.
    """
    tokens = np.array(prompt.tokens, np.int64)
    is_image, features = tokens == config.image_token, prompt.feature_numbers(config)
    if is_image.sum() != len(features) or not len(tokens):
        raise ValueError(
            f"a prompt has {len(tokens)} tokens, of them {is_image.sum()} image tokens, and {len(prompt.images)} "
            f"images, which take {len(features)} image tokens; give each image exactly its image tokens"
        )
    digests = [int.from_bytes(hashlib.sha256(one.name.encode()).digest()[:7]) for one in prompt.images]
    image, feature = np.divmod(features, config.tile_features)
    tokens[is_image] = -1 - np.array(digests, np.int64)[image] - feature
    return tokens


def image_edges(prompt: Prompt, config: ModelConfig) -> np.ndarray:
    """Whether the first n positions hold only whole images, for n from 0 to the prompt's length.

    Where a prefix ends inside an image, its features have to be there a second time for the rest.
    """
    features = prompt.feature_numbers(config)
    whole = np.ones(len(features) + 1, bool)  # by the number of image tokens before
    if len(features):
        last, next_ = np.maximum.accumulate(features)[:-1], np.minimum.accumulate(features[::-1])[::-1][1:]
        whole[1:-1] = (last < next_) & (next_ % config.tile_features == 0)
    is_image = np.array(prompt.tokens, np.int64) == config.image_token
    return whole[np.concatenate(([0], is_image.cumsum()))]


def common_prefix(ours: np.ndarray, theirs: np.ndarray) -> int:
    """The number of first positions that two contents have in common."""
    shorter = min(len(ours), len(theirs))
    differs = np.flatnonzero(ours[:shorter] != theirs[:shorter])
    return int(differs[0]) if len(differs) else shorter


@dataclass(frozen=True, slots=True)
class PromptContent:
    """A prompt with all that other prompts are compared by.

    content      what stands at each position (`content`)
    edges        whether the first n positions hold only whole images (`image_edges`)
    block_keys   of its blocks of positions, for its salt (`block_keys`)
    """

    prompt: Prompt
    content: np.ndarray
    edges: np.ndarray
    block_keys: Sequence[bytes]
    salt: int = 0

    @classmethod
    def of(cls, prompt: Prompt, config: ModelConfig, *, salt: int = 0) -> "PromptContent":
        """The content of a prompt.

        Raises:
            ValueError: the images don't fit the image tokens, or the prompt is empty.
        """
        whole = content(prompt, config)
        return cls(prompt, whole, image_edges(prompt, config), block_keys(whole, salt=salt), salt)

    def __len__(self) -> int:
        return len(self.content)

    def beginning(self, stop: int, config: ModelConfig) -> "PromptContent":
        """The first `stop` positions, which end inside no image."""
        part, keys = self.prompt.part(0, stop, config), self.block_keys[: whole_blocks(stop)]
        return PromptContent(part, self.content[:stop], self.edges[: stop + 1], keys, self.salt)

    def whole(self, positions: int) -> int:
        """The largest number of first positions, `positions` at most, that ends inside no image."""
        return int(np.flatnonzero(self.edges[: positions + 1])[-1])

    def next_whole(self, positions: int) -> int:
        """The smallest number of first positions, `positions` at least, that ends inside no image."""
        return positions + int(self.edges[positions:].argmax())

"""What the encoder sees of a picture."""

from dataclasses import dataclass

from mm1.config.model import ModelConfig


@dataclass(frozen=True, slots=True)
class TileSpec:
    """A tile: a square of `size` x `size` pixels, which becomes `tokens` image tokens."""

    size: int
    tokens: int


def tile_spec(model: ModelConfig) -> TileSpec:
    """The tiles that a model takes."""
    return TileSpec(size=model.vision.image_size, tokens=model.connector.tokens)

"""InternVL to ours: pure functions over configs and state dicts.

It is a ViT whose last layer is not normed, a pixel shuffle with a norm and two linear layers, and a decoder. Pictures
are cut as `tiling.py` says under `internvl`, between two tokens. An import of it leaves with mm1's modelling file: its
own processor needs one for videos.
"""

from pathlib import Path
from typing import Any

from mm1.config.model import ConnectorConfig, ModelConfig, TilingConfig
from mm1.data.tokenizer import Tokenizer
from mm1.hf.decoder_config import decoder_config_from_hf
from mm1.hf.files import Processor, image_processor
from mm1.hf.vision import vision_config_from_hf
from mm1.tiling import KINDS


def config_from_hf(theirs: dict[str, Any], folder: Path) -> ModelConfig:
    """Our config for an InternVL, from its config.json and the preprocessor_config.json beside it.

    Raises:
        ValueError: it has parts that ours doesn't have.
    """
    vision = vision_config_from_hf({"vision_config": {"model_type": "internvl_vision"} | theirs["vision_config"]})
    ratio, side = theirs.get("downsample_ratio", 0.5), vision.grid.rows
    if side * ratio != int(side * ratio) or 1 / ratio != int(1 / ratio):
        raise ValueError(f"downsample_ratio is {ratio}, which makes no whole blocks of {side} patches a side")
    expected = {"vision_feature_layer": -1, "vision_feature_select_strategy": "default", "projector_hidden_act": "gelu"}
    for name, value in expected.items():
        if theirs.get(name, value) != value:
            raise ValueError(f"{name} is {theirs[name]!r}, but only {value!r} is supported")
    text = theirs.get("text_config")
    if text is None:
        raise ValueError("config.json has no text_config, which describes the decoder")
    tie_embeddings = theirs.get("tie_word_embeddings", text.get("tie_word_embeddings", True))
    decoder = decoder_config_from_hf({"model_type": "qwen2"} | text | {"tie_word_embeddings": tie_embeddings})
    return ModelConfig(
        vision=vision,
        tiling=_tiling(folder, pixels=vision.image_size),
        connector=ConnectorConfig(kind="pixel_shuffle_mlp", tokens=int(side * ratio) ** 2),
        decoder=decoder,
    )


def _tiling(folder: Path, *, pixels: int) -> TilingConfig:
    """How their processor cuts pictures. It always does, whatever its file says of `crop_to_patches`.

    Raises:
        ValueError: its tiles are not the encoder's images.
    """
    settings, preset = image_processor(folder), KINDS["internvl"]
    size = settings.get("size", {"height": pixels, "width": pixels})
    if (size.get("height"), size.get("width")) != (pixels, pixels):
        raise ValueError(f"its processor makes tiles of {size}, but its encoder takes {pixels} x {pixels} pixels")
    least, most = settings.get("min_patches", preset.min_tiles), settings.get("max_patches", preset.max_tiles)
    return TilingConfig(
        kind="internvl",
        indicators="start_end",
        min_tiles=None if least == preset.min_tiles else least,
        max_tiles=None if most == preset.max_tiles else most,
        use_max_tiles=None if most == preset.use_max_tiles else most,
    )


def left_out(folder: Path) -> str:
    """What ours doesn't take."""
    return "videos"


def config_to_hf(config: ModelConfig, *, max_positions: int) -> dict[str, Any]:
    """Nothing: none is written.

    Raises:
        ValueError: always; the message says why.
    """
    raise ValueError("mm1 writes none: its processor needs one for videos")


def processor(config: ModelConfig, tokenizer: Tokenizer) -> Processor:
    """As `config_to_hf`."""
    raise ValueError("mm1 writes none")

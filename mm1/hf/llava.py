"""LLaVA's models (LLaVA-1.5, -NeXT, -OneVision) to ours and back: pure functions over configs and state dicts.

A LLaVA is an encoder, an MLP of two layers and a decoder: LlavaForConditionalGeneration of `transformers`. LLaVA-NeXT
has tiles besides, as `tiling.py` says under `llava_next`: LlavaNextForConditionalGeneration.
Nothing is computed, so a round trip gives the same tensors, bit for bit.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from mm1.config.model import ConnectorConfig, ModelConfig, TilingConfig
from mm1.data.tokenizer import Tokenizer
from mm1.hf.decoder_config import decoder_config_from_hf, decoder_config_to_hf
from mm1.hf.decoder_state import decoder_from_hf, decoder_to_hf
from mm1.hf.files import Processor, normalised_images, squeezed_images
from mm1.hf.layouts import LAYOUTS, State, by_part, find, vision_from_hf, write
from mm1.hf.names import CONNECTOR, reverse, translate
from mm1.hf.vision import vision_config_from_hf, vision_config_to_hf
from mm1.tiling import KINDS, SHAPES, SHAPES_OF_36

_BETWEEN = re.compile(r"multi_modal_projector\..*|image_newline$")
"""The names of the connector's tensors."""

_SELECT = {"clip_vision_model": "default", "siglip_vision_model": "full"}
"""Which tokens of an encoder LLaVA takes: CLIP's without the class token; all of SigLIP's, which has none."""


def llava_config_from_hf(theirs: dict[str, Any], folder: Path | None = None) -> ModelConfig:
    """Our config for a LLaVA, from its config.json. The tiles of a LLaVA-NeXT are not in it.

    Raises:
        ValueError: it has parts that ours doesn't have, or takes features of a layer that ours can't take.
    """
    vision = vision_config_from_hf(theirs)
    layer = theirs.get("vision_feature_layer", -2)
    if not isinstance(layer, int) or not -vision.layers - 1 <= layer - (layer >= 0) * (vision.layers + 1) < 0:
        raise ValueError(f"vision_feature_layer is {layer!r}; it must be one of the encoder's {vision.layers} layers")
    tokens = theirs.get("vision_feature_select_strategy", "default")
    if tokens != ("default" if vision.class_token else "full") or vision.registers:
        raise ValueError(f"vision_feature_select_strategy is {tokens!r}; only the patches of an encoder can be read")
    for name, value in {"projector_hidden_act": "gelu", "multimodal_projector_bias": True}.items():
        if theirs.get(name, value) != value:
            raise ValueError(f"{name} is {theirs[name]!r}, but only {value!r} is supported")
    vision.feature_layer = layer if layer < 0 else layer - vision.layers - 1
    vision.feature_norm = vision.feature_layer != -1  # it never takes normed features
    text = theirs.get("text_config")
    if text is None:
        raise ValueError("config.json has no text_config, which describes the decoder")
    tie_embeddings = text.get("tie_word_embeddings") or theirs.get("tie_word_embeddings", False)
    decoder = decoder_config_from_hf({"model_type": "llama"} | text | {"tie_word_embeddings": tie_embeddings})
    return ModelConfig(vision=vision, connector=ConnectorConfig(kind="mlp", tokens=vision.grid.cells), decoder=decoder)


def llava_next_config_from_hf(theirs: dict[str, Any], folder: Path) -> ModelConfig:
    """Our config for a LLaVA-NeXT, from its config.json.

    Raises:
        ValueError: as `llava_config_from_hf`, or it has other grids of tiles.
    """
    model = llava_config_from_hf(theirs)
    pixels = theirs["vision_config"].get("image_size", model.vision.image_size)
    default = [[rows * 336, columns * 336] for rows, columns in SHAPES]
    grids = [[*grid] for grid in theirs.get("image_grid_pinpoints") or default]
    for most in (4, 3, 2):
        if grids == _pinpoints(pixels, most=most):
            limits = {} if most == KINDS["llava_next"].max_tiles else {"max_tiles": most, "use_max_tiles": most}
            size = {} if pixels == model.vision.image_size else {"pixels": pixels}
            model.tiling = TilingConfig(kind="llava_next", **limits, **size)
            return model
    raise ValueError(
        f"image_grid_pinpoints are {grids}; only LLaVA-NeXT's own can be read, for this encoder "
        f"{_pinpoints(pixels, most=4)}"
    )


def onevision_config_from_hf(theirs: dict[str, Any], folder: Path) -> ModelConfig:
    """Our config for a LLaVA-OneVision, from its config.json.

    Raises:
        ValueError: as `llava_config_from_hf`, or it has other grids of tiles.
    """
    model = llava_config_from_hf({"vision_feature_layer": -1, "vision_feature_select_strategy": "full"} | theirs)
    pixels = theirs["vision_config"].get("image_size", model.vision.image_size)
    ratio, whole = theirs.get("vision_aspect_ratio", "anyres_max_9"), KINDS["llava_onevision"]
    grids = [[shape.rows * pixels, shape.columns * pixels] for shape in SHAPES_OF_36]
    if ratio != "anyres_max_9" or [[*grid] for grid in theirs.get("image_grid_pinpoints") or grids] != grids:
        raise ValueError(
            f"it cuts pictures by vision_aspect_ratio {ratio!r} and image_grid_pinpoints; only anyres_max_9 with all "
            f"{len(grids)} grids of up to 6 x 6 tiles of {pixels} pixels can be read"
        )
    model.tiling = TilingConfig(kind="llava_onevision", pixels=None if pixels == model.vision.image_size else pixels)
    assert whole.max_tiles == int(1.1**2 * 9)  # more tiles than this are what their model shrinks
    return model


def onevision_left_out(folder: Path) -> str:
    """What ours does in another way."""
    return (
        "videos; pictures of more than 10 tiles, whose features it shrinks, are cut into at most 10; where a text has "
        "several pictures, it pads each to a square with a mean color, mm1 squeezes it"
    )


def onevision_config_to_hf(config: ModelConfig, *, max_positions: int) -> dict[str, Any]:
    """Nothing: none is written.

    Raises:
        ValueError: always; the message says why.
    """
    raise ValueError("mm1 writes none: its processor needs one for videos")


def _pinpoints(pixels: int, *, most: int) -> list[list[int]]:
    """Height and width of the pictures of all grids with so many tiles of `pixels` a side, in LLaVA-NeXT's order."""
    return [[shape.rows * pixels, shape.columns * pixels] for shape in SHAPES if shape.cells <= most]


def llava_config_to_hf(config: ModelConfig, *, max_positions: int) -> dict[str, Any]:
    """The config of the LLaVA that `config` describes; `max_positions` is the length that it was trained for.

    Raises:
        ValueError: it describes no LLaVA; the message says why.
    """
    _check_tiling(config, kind="none")
    vision, connector = config.vision, config.connector
    if connector.kind != "mlp" or connector.tokens != vision.grid.cells:
        raise ValueError(
            f"a LLaVA has an mlp of {vision.grid.cells} tokens, not {connector.kind} of {connector.tokens}"
        )
    if vision.feature_layer == -1 and vision.feature_norm:
        raise ValueError("a LLaVA doesn't norm the features that it takes, but model.vision.feature_norm does")
    encoder = vision_config_to_hf(vision)
    if encoder["model_type"] not in _SELECT:
        raise ValueError(f"no LLaVA has an encoder of type {encoder['model_type']}")
    return {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "vision_config": encoder,
        "text_config": decoder_config_to_hf(config.decoder, max_positions=max_positions),
        "vision_feature_layer": vision.feature_layer,
        "vision_feature_select_strategy": _SELECT[encoder["model_type"]],
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "image_token_index": config.image_token_id,
        "image_token_id": config.image_token_id,
        "image_seq_length": connector.tokens,
        "tie_word_embeddings": config.decoder.tie_embeddings,
    }


def llava_next_config_to_hf(config: ModelConfig, *, max_positions: int) -> dict[str, Any]:
    """The config of the LLaVA-NeXT that `config` describes.

    Raises:
        ValueError: as `llava_config_to_hf`.
    """
    _check_tiling(config, kind="llava_next")
    pixels = config.tiling.pixels or config.vision.image_size
    theirs = llava_config_to_hf(config.model_copy(update={"tiling": TilingConfig()}), max_positions=max_positions)
    theirs["vision_config"]["image_size"] = pixels
    return theirs | {
        "model_type": "llava_next",
        "architectures": ["LlavaNextForConditionalGeneration"],
        "image_grid_pinpoints": _pinpoints(pixels, most=_most(config)),
    }


def _most(config: ModelConfig) -> int:
    tiling = config.tiling.resolved
    return max(tiling.max_tiles, tiling.use_max_tiles)


def _check_tiling(config: ModelConfig, *, kind: str) -> None:
    limits: dict[str, Any] = {"max_tiles": _most(config), "use_max_tiles": _most(config)}
    if replace(config.tiling.resolved, **limits) != replace(KINDS[kind], **limits) or _most(config) > 4:
        raise ValueError(f"such a model cuts every picture as model.tiling.kind={kind} says, not as here")


def llava_processor(config: ModelConfig, tokenizer: Tokenizer) -> Processor:
    """LLaVA's processor; a picture has as many image tokens as its encoder has patches."""
    return Processor("LlavaProcessor", squeezed_images(config.vision), _counts(config, tokenizer))


def llava_next_processor(config: ModelConfig, tokenizer: Tokenizer) -> Processor:
    """LLaVA-NeXT's processor, which cuts pictures into tiles."""
    pixels = config.tiling.pixels or config.vision.image_size
    images = normalised_images(config.vision) | {
        "image_processor_type": "LlavaNextImageProcessor",
        "size": {"shortest_edge": pixels},
        "crop_size": {"height": pixels, "width": pixels},
        "do_center_crop": True,
        "do_pad": True,
        "resample": 3,  # bicubic
        "image_grid_pinpoints": _pinpoints(pixels, most=_most(config)),
    }
    return Processor("LlavaNextProcessor", images, _counts(config, tokenizer))


def _counts(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    vision = config.vision
    return {
        "image_token": tokenizer.spelling("image"),
        "patch_size": vision.patch_size,
        "num_additional_image_tokens": int(vision.class_token),
        "vision_feature_select_strategy": "default" if vision.class_token else "full",
    }


def llava_from_hf(theirs: State, config: ModelConfig) -> State:
    """The state of our `MLLM` from a state dict of theirs, with the names of any version."""
    _, prefix = find(theirs)
    encoder = {name: x for name, x in theirs.items() if name.startswith(prefix)}
    ours = {f"vision.{name}": x for name, x in vision_from_hf(encoder).items()}
    between = {match[0]: x for name, x in theirs.items() if (match := _BETWEEN.search(name))}
    ours |= {f"connector.{name}": between[their] for their, name in translate(between, reverse(CONNECTOR)).items()}
    rest = {name: x for name, x in theirs.items() if not name.startswith(prefix) and not _BETWEEN.search(name)}
    return ours | {
        f"decoder.{n}": x for n, x in decoder_from_hf(rest, tie_embeddings=config.decoder.tie_embeddings).items()
    }


def llava_to_hf(ours: State, config: ModelConfig) -> State:
    """Their state dict, with the names of the published files, from the state of our `MLLM` or a part of it."""
    parts = by_part(ours)
    theirs = {f"vision_tower.{name}": x for name, x in write(parts["vision"], LAYOUTS["clip"]).items()}
    theirs |= {their: parts["connector"][name] for name, their in translate(parts["connector"], CONNECTOR).items()}
    return theirs | {f"language_model.{name}": x for name, x in decoder_to_hf(parts["decoder"], config.decoder).items()}

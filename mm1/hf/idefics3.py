"""Idefics3 and SmolVLM to ours and back: pure functions over configs and state dicts.

They are a SigLIP, a pixel shuffle with one linear layer, and a decoder. Both compute the same, so a
SmolVLM is written as an Idefics3. Pictures are cut into tiles as `tiling.py` says under `idefics3`.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from mm1.config.model import ConnectorConfig, ModelConfig, TilingConfig, VisionConfig
from mm1.data.tokenizer import Tokenizer
from mm1.hf.decoder_config import decoder_config_from_hf, decoder_config_to_hf
from mm1.hf.decoder_state import decoder_from_hf, decoder_to_hf
from mm1.hf.files import Processor, image_processor, normalised_images
from mm1.hf.layouts import LAYOUTS, State, by_part, vision_from_hf, write
from mm1.hf.vision import vision_config_from_hf, vision_config_to_hf
from mm1.tiling import AROUND, KINDS

_CONNECTOR = "model.connector.modality_projection.proj.weight"
_LANCZOS = 1
"""Pillow's number of the filter that their processor resizes with by default."""
_LONGEST = 4096
"""The longest side that their processor resizes to, in pixels."""


def config_from_hf(theirs: dict[str, Any], folder: Path) -> ModelConfig:
    """Our config for an Idefics3 or SmolVLM, from its config.json and the preprocessor_config.json beside it.

    Raises:
        ValueError: it has parts that ours doesn't have, or cuts pictures in another way.
    """
    # the first files published call the encoder's type idefics3 too
    vision = vision_config_from_hf(theirs.get("vision_config", {}) | {"model_type": "idefics3_vision"})
    scale = theirs.get("scale_factor", 2)
    if vision.grid.rows % scale:
        raise ValueError(f"scale_factor is {scale}, which does not divide the {vision.grid.rows} patches of a side")
    text = theirs.get("text_config")
    if text is None:
        raise ValueError("config.json has no text_config, which describes the decoder")
    tie_embeddings = text.get("tie_word_embeddings") or theirs.get("tie_word_embeddings", False)
    decoder = decoder_config_from_hf(
        {"model_type": "llama", "rms_norm_eps": 1e-5} | text | {"tie_word_embeddings": tie_embeddings}
    )
    return ModelConfig(
        vision=vision,
        tiling=_tiling(folder, vision, pixels=theirs.get("vision_config", {}).get("image_size", vision.image_size)),
        connector=ConnectorConfig(kind="pixel_shuffle", tokens=vision.grid.cells // scale**2),
        decoder=decoder,
    )


def _tiling(folder: Path, vision: VisionConfig, *, pixels: int) -> TilingConfig:
    """How their processor cuts pictures into tiles of so many pixels a side.

    Raises:
        ValueError: there is no preprocessor_config.json, or its tiles are not the encoder's images.
    """
    settings = image_processor(folder)
    if "max_image_size" not in settings:
        raise ValueError(f"{folder} has no preprocessor_config.json that tells how pictures are cut; download it too")
    tile, longest = settings["max_image_size"]["longest_edge"], settings["size"]["longest_edge"]
    if tile != pixels or longest % tile or longest > _LONGEST:
        raise ValueError(
            f"its processor makes tiles of {tile} pixels of pictures of {longest}, but its encoder takes {pixels}; "
            "only whole numbers of tiles of the encoder's size can be read"
        )
    most = (longest // tile) ** 2
    return TilingConfig(
        kind="idefics3",
        max_tiles=None if most == KINDS["idefics3"].max_tiles else most,
        use_max_tiles=None if most == KINDS["idefics3"].use_max_tiles else most,
        full_images=None if settings.get("do_image_splitting", True) else 0,
        pixels=None if pixels == vision.image_size else pixels,
    )


def left_out(folder: Path) -> str:
    """What ours does in another way than the processor in the folder."""
    if image_processor(folder).get("resample", _LANCZOS) == 3:
        return ""
    return "the filter of its processor: ours resizes pictures bicubically"


def config_to_hf(config: ModelConfig, *, max_positions: int) -> dict[str, Any]:
    """The config of the Idefics3 that `config` describes; `max_positions` is the length of the longest text.

    Raises:
        ValueError: it describes no Idefics3; the message says why.
    """
    vision, connector = config.vision, config.connector
    scale = vision.grid.rows / connector.grid.rows
    if connector.kind != "pixel_shuffle" or scale != int(scale):
        raise ValueError(f"an Idefics3 has a pixel shuffle of whole blocks, not {connector.kind} of {connector.tokens}")
    if vision.feature_layer != -1 or not vision.feature_norm:
        raise ValueError(f"an Idefics3 takes the last layer's normed features, not those of {vision.feature_layer}")
    encoder = vision_config_to_hf(vision)
    if encoder["model_type"] != "siglip_vision_model":
        raise ValueError(f"no Idefics3 has an encoder of type {encoder['model_type']}")
    _check_tiling(config)
    encoder |= {"model_type": "idefics3_vision", "image_size": config.tiling.pixels or vision.image_size}
    del encoder["architectures"], encoder["vision_use_head"]
    return {
        "model_type": "idefics3",
        "architectures": ["Idefics3ForConditionalGeneration"],
        "vision_config": encoder,
        "text_config": decoder_config_to_hf(config.decoder, max_positions=max_positions),
        "scale_factor": int(scale),
        "image_token_id": config.image_token_id,
        "tie_word_embeddings": config.decoder.tie_embeddings,
    }


def _check_tiling(config: ModelConfig) -> None:
    tiling = config.tiling.resolved
    most = _most(config)
    like = replace(KINDS["idefics3"], min_tiles=tiling.min_tiles, max_tiles=most, use_max_tiles=most)
    longest = math.isqrt(most) * (config.tiling.pixels or config.vision.image_size)
    if replace(tiling, max_tiles=most, use_max_tiles=most) != like or longest > _LONGEST:
        raise ValueError("an Idefics3 cuts every picture as model.tiling.kind=idefics3 says, and into nothing larger")


def _most(config: ModelConfig) -> int:
    tiling = config.tiling.resolved
    return max(tiling.max_tiles, tiling.use_max_tiles)


def processor(config: ModelConfig, tokenizer: Tokenizer) -> Processor:
    """Their processor, which finds the tokens around tiles by their names.

    Raises:
        ValueError: the tokenizer has no such tokens.
    """
    side, pixels = math.isqrt(_most(config)), config.tiling.pixels or config.vision.image_size
    names = [AROUND, "<global-img>", *(f"<row_{row}_col_{side}>" for row in range(1, side + 1))]
    missing = [name for name in names if len(tokenizer.indicator(name)) != 1]
    if tokenizer.spelling("image") != "<image>" or missing:
        raise ValueError(f"the tokenizer has no token {missing[0] if missing else '<image>'}, which Idefics3 has")
    return Processor(
        "Idefics3Processor",
        normalised_images(config.vision)
        | {
            "image_processor_type": "Idefics3ImageProcessor",
            "size": {"longest_edge": side * pixels},
            "max_image_size": {"longest_edge": pixels},
            "do_image_splitting": True,
            "do_pad": True,
            "resample": 3,  # bicubic
        },
        {"image_seq_len": config.connector.tokens},
    )


def state_from_hf(theirs: State, config: ModelConfig) -> State:
    """The state of our `MLLM` from a state dict of theirs."""
    encoder = {name: x for name, x in theirs.items() if ".vision_model." in f".{name}"}
    between = {name: x for name, x in theirs.items() if ".connector." in f".{name}"}
    rest = {name: x for name, x in theirs.items() if name not in encoder and name not in between}
    ours = {f"vision.{name}": x for name, x in vision_from_hf(encoder).items()}
    (ours["connector.out.weight"],) = between.values()
    decoder = decoder_from_hf(rest, tie_embeddings=config.decoder.tie_embeddings)
    return ours | {f"decoder.{name}": x for name, x in decoder.items()}


def state_to_hf(ours: State, config: ModelConfig) -> State:
    """Their state dict, with the names of the published files, from the state of our `MLLM` or a part of it."""
    parts = by_part(ours)
    theirs = {f"model.{name}": x for name, x in write(parts["vision"], LAYOUTS["clip"]).items()}
    if parts["connector"]:
        (theirs[_CONNECTOR],) = parts["connector"].values()
    for name, x in decoder_to_hf(parts["decoder"], config.decoder).items():
        theirs[name.replace("model.", "model.text_model.", 1)] = x
    return theirs

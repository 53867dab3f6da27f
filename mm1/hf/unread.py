"""What mm1 doesn't read of published models, said in one line: what it is, and what is read."""

from pathlib import Path
from typing import Any

from mm1.hf.decoders import FAMILIES as DECODERS
from mm1.hf.families import FAMILIES
from mm1.hf.vision import FAMILIES as ENCODERS

_READ = (
    f"mm1 reads language models of the types {', '.join(DECODERS)}; image encoders of the types {', '.join(ENCODERS)}, "
    f"AIM and plain ViTs of OpenCLIP; and whole models of the types {', '.join(FAMILIES)} (docs/weights.md)"
)

_WHY_NOT_WHOLE = dict.fromkeys(
    ("gemma3", "paligemma"), ", whose image tokens see each other in both directions: our attention is causal"
)
"""Why models of these types are not read as a whole."""

_TOWERS = ("clip", "siglip", "siglip2")
"""Types that are an image encoder beside a text encoder."""


def check_whole(folder: Path, theirs: dict[str, Any]) -> None:
    """Check that the folder holds a model's own weights.

    Raises:
        ValueError: it holds an adapter, or quantised weights.
    """
    if (folder / "adapter_config.json").is_file() and not theirs:
        raise ValueError(
            f"{folder} holds an adapter (adapter_config.json) without the model it belongs to; merge it into that "
            "model with peft's merge_and_unload(), and import what you save then"
        )
    settings = theirs.get("quantization_config") or theirs.get("compression_config")
    if settings:
        method = settings.get("quant_method", "of an unnamed method")
        raise ValueError(
            f"{folder} holds quantised weights ({method}), which mm1 doesn't read; import the model in bf16 or fp32 "
            "that they were made from"
        )


def check_decoder(folder: Path, theirs: dict[str, Any]) -> None:
    """Check that a model's decoder is of a family that is read.

    Raises:
        ValueError: it is of another type.
    """
    if theirs and theirs.get("text_config", theirs).get("model_type", "") not in DECODERS:
        raise ValueError(f"{folder} is {describe(theirs)}, which mm1 doesn't read; {_READ}")


def check_encoder(folder: Path, theirs: dict[str, Any]) -> None:
    """Check that the image encoder of a larger model is of a family that is read.

    Raises:
        ValueError: it is of another type.
    """
    kind = theirs["vision_config"].get("model_type", "")
    if kind not in ENCODERS:
        raise ValueError(
            f"{folder} is {describe(theirs)}, which mm1 reads neither as a whole nor for its image encoder "
            f"({kind or 'of no named type'}); {_READ}"
        )


def describe(theirs: dict[str, Any]) -> str:
    """What a config.json says that its model is: `Gemma3ForConditionalGeneration (gemma3)`."""
    kind = theirs.get("model_type") or theirs.get("architecture", "")
    name = (theirs.get("architectures") or ["a model"])[0]
    return f"{name} ({kind})" if kind else name


def left_out(theirs: dict[str, Any]) -> str:
    """What is not read of a model of which only the image encoder is; empty if the encoder is all."""
    kept = _cropped(theirs.get("vision_config", theirs))
    if "vision_config" not in theirs:
        return kept
    kind = theirs.get("model_type", "")
    whole = f"{describe(theirs)} whole{_WHY_NOT_WHOLE.get(kind, '')}"
    rest = "its text encoder" if kind in _TOWERS else f"all but the image encoder: mm1 doesn't read {whole}"
    return f"{rest}; {kept}" if kept else rest


def _cropped(vision: dict[str, Any]) -> str:
    """What an encoder's patches leave out of its images; empty if they fill them."""
    size, patch = vision.get("image_size"), vision.get("patch_size")
    if not isinstance(size, int) or not isinstance(patch, int) or size % patch == 0:
        return ""
    filled = size - size % patch
    return (
        f"images are resized to {filled} x {filled} pixels, which patches of {patch} fill; transformers resizes them "
        f"to {size} x {size}, and their last {size % patch} rows and columns are not seen"
    )

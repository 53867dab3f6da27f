"""What mm1 doesn't read of published models, said in one line: what it is, and what is read."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
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

_OTHER_HEAD = re.compile(r"For(?!CausalLM|ConditionalGeneration|ImageTextToText|Vision2Seq|VisionText2Text)\w+$")
"""The end of the name of a class that has another head than one for text."""

_QUANTISED = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
"""Files beside quantised weights whose config.json may say nothing of them, by the method."""

_TOWERS = ("clip", "siglip", "siglip2")
"""Types that are an image encoder beside a text encoder."""


def check_whole(folder: Path, theirs: dict[str, Any]) -> None:
    """Check that the folder holds a model's own weights.

    Raises:
        ValueError: it holds an adapter, or quantised weights.
    """
    if (folder / "adapter_config.json").is_file():
        beside = ", or remove its files if the model beside it has it merged in" if theirs else ""
        raise ValueError(
            f"{folder} holds an adapter (adapter_config.json), which mm1 doesn't read; merge it into its model with "
            f"peft's merge_and_unload(), and import what you save then{beside}"
        )
    if method := _quantisation(folder, theirs):
        raise ValueError(
            f"{folder} holds quantised weights ({method}), which mm1 doesn't read; import the model in bf16 or fp32 "
            "that they were made from"
        )


def _quantisation(folder: Path, theirs: dict[str, Any]) -> str:
    """The method by which the weights are quantised; empty if they are not."""
    for part in (theirs, _fields(theirs.get("text_config"))):
        for name in ("quantization_config", "compression_config", "quantization"):  # the last is MLX's
            if settings := part.get(name):
                method = settings if isinstance(settings, str) else _fields(settings).get("quant_method")
                return method or "of an unnamed method"
    return next((method for file, method in _QUANTISED.items() if (folder / file).is_file()), "")


def _fields(part: Any) -> dict[str, Any]:
    return part if isinstance(part, dict) else {}


def check_decoder(folder: Path, theirs: dict[str, Any]) -> None:
    """Check that a model's decoder is of a family that is read.

    Raises:
        ValueError: it is of another type.
    """
    if theirs and theirs.get("text_config", theirs).get("model_type", "") not in DECODERS:
        raise ValueError(f"{folder} is {describe(theirs)}, which mm1 doesn't read; {_READ}")
    if _OTHER_HEAD.search(_class_of(theirs)):
        raise ValueError(
            f"{folder} is {describe(theirs)}, which has another head than one for text; mm1 reads ...ForCausalLM of "
            "this type"
        )


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


@contextmanager
def naming(folder: Path, theirs: dict[str, Any]) -> Iterator[None]:
    """Say of which model it is, if one of its parts can't be read."""
    try:
        yield
    except ValueError as why:
        raise ValueError(f"{folder} is {describe(theirs)}, which mm1 can't read: {why}") from None


def describe(theirs: dict[str, Any]) -> str:
    """What a config.json says that its model is: `Gemma3ForConditionalGeneration (gemma3)`."""
    kind = theirs.get("model_type") or theirs.get("architecture", "")
    name = _class_of(theirs)
    return f"{name} ({kind})" if kind else name


def _class_of(theirs: dict[str, Any]) -> str:
    return (theirs.get("architectures") or ["a model"])[0]


def left_out(theirs: dict[str, Any]) -> str:
    """What is not read of a model of which only the image encoder is; empty if the encoder is all."""
    kept = _cropped(theirs.get("vision_config", theirs))
    if "vision_config" not in theirs:
        head = f"the head of {_class_of(theirs)}" if _OTHER_HEAD.search(_class_of(theirs)) else ""
        return "; ".join(part for part in (head, kept) if part)
    kind = theirs.get("model_type", "")
    whole = f"{describe(theirs)} whole{_WHY_NOT_WHOLE.get(kind, '')}"
    rest = "its text encoder" if kind in _TOWERS else f"all but the image encoder: mm1 doesn't read {whole}"
    return f"{rest}; {kept}" if kept else rest


def left_out_tensors(names: list[str]) -> str:
    """What is said of tensors that our language models don't have, by their names."""
    biases = [name for name in names if name.endswith("lm_head.bias")]
    others = [name for name in names if name not in biases]
    said = [f"the output matrix's bias ({name})" for name in biases]
    if len(others) == 1:
        said.append(f"1 tensor that is no language model's, {others[0]}")
    elif others:
        said.append(f"{len(others)} tensors that are no language model's, such as {others[0]}")
    return "; ".join(said)


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

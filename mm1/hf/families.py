"""Published multimodal models that ours can be, by `model_type`: how config, tensors and processor go in and out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm1.config.model import ModelConfig
from mm1.data.tokenizer import Tokenizer
from mm1.hf import idefics3, internvl, llava
from mm1.hf.files import Processor
from mm1.hf.layouts import State


@dataclass(frozen=True, slots=True)
class Family:
    """Functions between a family's models and ours.

    config_from_hf  our config, from their config.json and the folder with the other files
    config_to_hf    their config.json, from our config and the length of the longest text
    processor       their processor for our config and tokenizer
    from_hf         the state of our `MLLM`, from theirs and our config
    to_hf           theirs from ours, or a part of it, and our config
    left_out        what ours does in another way than the model in a folder

    All but the last two raise ValueError for what the other side doesn't have.
    """

    config_from_hf: Callable[[dict[str, Any], Path], ModelConfig]
    config_to_hf: Callable[..., dict[str, Any]]
    processor: Callable[[ModelConfig, Tokenizer], Processor]
    from_hf: Callable[[State, ModelConfig], State]
    to_hf: Callable[[State, ModelConfig], State]
    left_out: Callable[[Path], str] = lambda folder: ""


_IDEFICS3 = Family(
    idefics3.config_from_hf,
    idefics3.config_to_hf,
    idefics3.processor,
    idefics3.state_from_hf,
    idefics3.state_to_hf,
    idefics3.left_out,
)

FAMILIES = {
    "llava": Family(
        llava.llava_config_from_hf,
        llava.llava_config_to_hf,
        llava.llava_processor,
        llava.llava_from_hf,
        llava.llava_to_hf,
    ),
    "llava_next": Family(
        llava.llava_next_config_from_hf,
        llava.llava_next_config_to_hf,
        llava.llava_next_processor,
        llava.llava_from_hf,
        llava.llava_to_hf,
    ),
    "idefics3": _IDEFICS3,
    "smolvlm": _IDEFICS3,
    "llava_onevision": Family(
        llava.onevision_config_from_hf,
        llava.onevision_config_to_hf,
        llava.llava_next_processor,
        llava.llava_from_hf,
        llava.llava_to_hf,
        llava.onevision_left_out,
    ),
    "internvl": Family(
        internvl.config_from_hf,
        internvl.config_to_hf,
        internvl.processor,
        llava.llava_from_hf,
        llava.llava_to_hf,
        internvl.left_out,
    ),
}
"""An export takes the first one that fits."""

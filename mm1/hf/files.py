"""Contents of the small files beside exported weights, as `transformers` reads them: pure functions."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm1.config.model import VisionConfig
from mm1.data.tokenizer import Tokenizer, own_marks
from mm1.hf.vocabulary import post_processor

_CHAT = (
    "{{- '<|begin|>' -}}{%- set turn = namespace(speaker='') -%}"
    "{%- for message in messages -%}"
    "{%- set speaker = 'assistant' if message['role'] == 'assistant' else 'user' -%}"
    "{%- if speaker != turn.speaker or speaker == 'assistant' -%}{{- '<|' + speaker + '|>' -}}{%- endif -%}"
    "{%- set turn.speaker = speaker -%}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for piece in message['content'] -%}"
    "{%- if piece['type'] == 'image' -%}{{- '<|image|>' -}}"
    "{%- elif piece['type'] == 'text' -%}{{- piece['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- if speaker == 'assistant' -%}{{- '<|end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
"""A conversation with the marks of `data/chat_format.py`. As in training, nothing is put between texts."""


def chat_template(tokenizer: Tokenizer) -> str:
    """The chat template of the project's marks, as this tokenizer spells them."""
    template = _CHAT
    for mark in ("begin", "image", "end"):
        template = template.replace(f"<|{mark}|>", tokenizer.spelling(mark) or "")
    return template


_IMPORT = re.compile(r"^from mm1\.(?:hf\.|model\.)?(\w+?)(?:_mm1)? import", re.MULTILINE)
MODEL, PICTURES = ("modeling_mm1", "vision_mm1", "rotary_mm1", "softcap_mm1"), ("processing_mm1", "tiling_mm1")
"""The code that an export has if no class of `transformers` fits its weights, and that of its processor."""


def code(*, pictures: bool) -> dict[str, str]:
    """The files with the model's source for `transformers`, which no module here imports."""
    sources = {}
    for name in (*MODEL, *(PICTURES if pictures else ())):
        module, package = f"{name.removesuffix('_mm1')}.py", Path(__file__).parents[1]
        candidates = (Path(__file__).with_name(f"{name}.py"), package / "model" / module, package / module)
        path = next(candidate for candidate in candidates if candidate.exists())
        # beside each other, files import each other without the name of the package
        sources[f"{name}.py"] = _IMPORT.sub(r"from .\1_mm1 import", path.read_text())
    return sources


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Greedy decoding up to an end token of the run; the image token is suppressed, since no text holds it."""
    marks, ends = tokenizer.marks, sorted(tokenizer.ends)
    return {
        "bos_token_id": marks.get("begin"),
        "eos_token_id": ends if len(ends) > 1 else marks["end"],
        "pad_token_id": marks["pad"],
        "suppress_tokens": [marks["image"]],
        "do_sample": False,
    }


def tokenizer_file(content: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """The run's tokenizer.json, changed to put `<|begin|>` before every text, since every document begins with it."""
    if own_marks(content):  # an imported model's: it does what that model's did
        return content
    return content | {"post_processor": post_processor({"begin": (tokenizer.begin, ["<|begin|>"])})}


def tokenizer_config(tokenizer: Tokenizer, *, max_positions: int, processor: str = "") -> dict[str, Any]:
    """Special tokens, and padding on the left, so that generation continues at the end of the text."""
    theirs: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.spelling("begin"),
        "eos_token": tokenizer.spelling("end"),
        "pad_token": tokenizer.spelling("pad"),
        "padding_side": "left",
        "model_max_length": max_positions,
        "clean_up_tokenization_spaces": False,
    }
    if processor:
        theirs |= {
            "extra_special_tokens": {"image_token": tokenizer.spelling("image")},
            "processor_class": processor,
        }
    return theirs


@dataclass(frozen=True, slots=True)
class Processor:
    """How `transformers` makes the inputs of a model from pictures and text: a class, and what its two files hold."""

    name: str
    images: dict[str, Any]  # preprocessor_config.json
    text: dict[str, Any]  # processor_config.json

    def contents(self) -> dict[str, str | dict[str, Any]]:
        """The content of each file."""
        named = {"processor_class": self.name}
        return {"preprocessor_config.json": self.images | named, "processor_config.json": named | self.text}


def image_processor(folder: Path) -> dict[str, Any]:
    """The settings of a folder's image processor, which newer versions keep one level deeper in another file."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            settings = json.loads((folder / name).read_text())
            return settings.get("image_processor", settings)
    return {}


def normalised_images(vision: VisionConfig) -> dict[str, Any]:
    """Pixels normalised as in `model/vision.py`."""
    return {
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(vision.mean),
        "image_std": list(vision.std),
    }


def squeezed_images(vision: VisionConfig) -> dict[str, Any]:
    """Images resized to a square as in `data/image.py`, then normalised."""
    return normalised_images(vision) | {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"height": vision.image_size, "width": vision.image_size},
        "crop_size": {"height": vision.image_size, "width": vision.image_size},  # LlavaProcessor counts tokens by it
        "resample": 3,  # bicubic
        "do_center_crop": False,
    }

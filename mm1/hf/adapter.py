"""Adapters in PEFT's layout (adapter_config.json, adapter_model.safetensors), for exported models: pure functions.

https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

from collections.abc import Callable
from typing import Any

import torch

from mm1.config.run import LoRAConfig
from mm1.model.lora import FACTORS, adapted, is_adapter

State = dict[str, torch.Tensor]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LOADED = {
    "language_model.model.": "model.language_model.",
    "multi_modal_projector.": "model.multi_modal_projector.",
    "image_newline": "model.image_newline",
    "vision_tower.vision_model.": "model.vision_tower.",
}
"""Where `transformers` puts parts of a LLaVA's file: adapters are named after the model in memory."""


def adapter_config(lora: LoRAConfig, tensors: State) -> dict[str, Any]:
    """The content of adapter_config.json for the tensors of `adapter_to_hf`.

    Layers are named in full: short names such as `query` would also find those of the encoder.
    """
    layers = [layer.removeprefix(_PREFIX) for layer in adapted(tensors)]
    whole = {name.removeprefix(_PREFIX) for name in tensors if not is_adapter(name)}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,  # whoever loads the adapter names the base
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "target_modules": sorted(layers),
        "modules_to_save": sorted({module for name in whole if (module := _module(name))}) or None,
    }


def adapter_to_hf(ours: State, rename: Callable[[State], State]) -> State:
    """PEFT's tensors of a run's adapters, and of its parts trained in full, which `rename` writes as in the export."""
    theirs = {}
    for layer in adapted(ours):
        (name,) = rename({f"{layer}.weight": torch.empty(0)})
        for factor in FACTORS:
            theirs[_PREFIX + _loaded(name.removesuffix(".weight")) + factor] = ours[layer + factor]
    whole = rename({name: x for name, x in ours.items() if not is_adapter(name)})
    return theirs | {_PREFIX + _loaded(name): x for name, x in whole.items()}


def _loaded(name: str) -> str:
    """The name in memory of a tensor or module of an exported file."""
    for file, memory in _LOADED.items():
        if name.startswith(file):
            return memory + name.removeprefix(file)
    return name


def _module(name: str) -> str | None:
    """The module in memory, connector or encoder, that a tensor belongs to.

    None for LLaVA-NeXT's `image_newline`, a parameter of the model itself. PEFT loads such a tensor by its name, as it
    does biases and embeddings.
    """
    modules = ("model.multi_modal_projector", "model.connector", "model.vision_tower", "model.vision_model")
    return next((module for module in (*modules, "model.vision") if name.startswith(f"{module}.")), None)

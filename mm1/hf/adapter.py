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
        "modules_to_save": sorted({_connector(name) for name in whole}) or None,
    }


def adapter_to_hf(ours: State, rename: Callable[[State], State]) -> State:
    """PEFT's tensors of a run's adapters and of its connector, whose tensors `rename` renames as in the export."""
    theirs = {}
    for layer in adapted(ours):
        (name,) = rename({f"{layer}.weight": torch.empty(0)})
        for factor in FACTORS:
            theirs[_PREFIX + _loaded(name.removesuffix(".weight")) + factor] = ours[layer + factor]
    for name, x in ours.items():
        if not is_adapter(name):
            (their,) = rename({name: x})
            theirs[_PREFIX + _loaded(their)] = x
    return theirs


def _loaded(name: str) -> str:
    """The name in memory of a tensor or module of an exported file."""
    for file, memory in _LOADED.items():
        if name.startswith(file):
            return memory + name.removeprefix(file)
    return name


def _connector(name: str) -> str:
    """The module that is the connector, from the name of one of its tensors."""
    for module in ("model.multi_modal_projector", "model.connector", "connector"):
        if name.startswith(f"{module}."):
            return module
    raise ValueError(f"{name} belongs to no module, which an adapter of PEFT can't hold; leave --adapter out")

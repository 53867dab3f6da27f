"""Image encoders of `transformers` as ours and back: pure functions over configs (as in config.json) and state dicts.

State dicts are of the part alone (`Vision`). Nothing is computed, so what goes there and back is the same
to the bit.
"""

from typing import Any

import torch

from mm1.config import VisionConfig
from mm1.hf.names import VISION, VISION_DROPPED, reverse, translate

State = dict[str, torch.Tensor]

_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}

_VISION_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip_vision_model": {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "siglip_vision_model": {"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
}
"""By model type; `transformers` leaves defaults out of a config inside a config."""

_VISION_SHAPE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
}

_PIXELS = {
    "clip_vision_model": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip_vision_model": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and deviation as in the family's preprocessor_config.json."""


def vision_config_from_hf(theirs: dict[str, Any]) -> VisionConfig:
    """Our config of a CLIP or SigLIP image encoder, alone or inside a larger model's config.

    Where patches don't fill the image (SigLIP's 384 pixels in patches of 14) the size is cut to those
    that do, as their convolution does.

    Raises:
        ValueError: another family, or an unknown activation.
    """
    theirs = theirs.get("vision_config", theirs)
    family = theirs.get("model_type", "")
    if family not in _VISION_DEFAULTS:
        raise ValueError(f"image encoders of type {family!r} can't be read; known: {', '.join(_VISION_DEFAULTS)}")
    whole = _VISION_SHAPE | _VISION_DEFAULTS[family] | theirs
    activations: dict[str, Any] = reverse(_ACTIVATIONS)
    if whole["hidden_act"] not in activations:
        raise ValueError(f"activation {whole['hidden_act']!r} is unknown; known: {', '.join(activations)}")
    clip = family == "clip_vision_model"
    mean, deviation = _PIXELS[family]
    return VisionConfig(
        image_size=whole["image_size"] - whole["image_size"] % whole["patch_size"],
        patch_size=whole["patch_size"],
        width=whole["hidden_size"],
        layers=whole["num_hidden_layers"],
        heads=whole["num_attention_heads"],
        mlp_width=whole["intermediate_size"],
        activation=activations[whole["hidden_act"]],
        norm_epsilon=whole["layer_norm_eps"],
        class_token=clip,
        patch_bias=not clip,
        input_norm=clip,
        mean=mean,
        deviation=deviation,
    )


def vision_config_to_hf(config: VisionConfig) -> dict[str, Any]:
    """A CLIP or SigLIP vision config for `config`, whichever has its parts.

    Raises:
        ValueError: neither family has them.
    """
    parts = (config.class_token, config.input_norm, not config.patch_bias)
    if len(set(parts)) > 1:
        raise ValueError(
            "CLIP has class token and input norm and no patch bias, SigLIP has only the bias; this encoder "
            f"has class_token {parts[0]}, input_norm {parts[1]}, patch_bias {not parts[2]}"
        )
    family = "clip" if config.class_token else "siglip"
    theirs = {
        "model_type": f"{family}_vision_model",
        "architectures": ["CLIPVisionModel" if config.class_token else "SiglipVisionModel"],
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_act": _ACTIVATIONS[config.activation],
        "layer_norm_eps": config.norm_epsilon,
    }
    return theirs if config.class_token else theirs | {"vision_use_head": False}


def vision_from_hf(theirs: State) -> State:
    """The state of our `Vision` in a state dict of theirs, wherever in it the image encoder stands."""
    inside = {name: x for name, x in _inside(theirs).items() if not VISION_DROPPED.match(name)}
    ours = {name: inside[their] for their, name in translate(inside, reverse(VISION)).items()}
    ours["patch.weight"] = ours["patch.weight"].flatten(1)
    return ours


def vision_to_hf(ours: State) -> State:
    """Their state dict, named as their published files are, of the state of our `Vision`."""
    theirs = {"vision_model." + their: ours[name] for name, their in translate(ours, VISION).items()}
    patch = "vision_model.embeddings.patch_embedding.weight"
    size = round((theirs[patch].shape[1] / 3) ** 0.5)
    theirs[patch] = theirs[patch].unflatten(1, (3, size, size))
    return theirs


def _inside(state: State) -> State:
    """The part of `state` that is the image encoder, its prefix off."""
    ending = "embeddings.patch_embedding.weight"
    found = [name.removesuffix(ending) for name in state if name.endswith(ending)]
    if len(found) != 1:
        raise ValueError(f"found {len(found)} tensors named ...{ending} among {len(state)}, expected one")
    return {name.removeprefix(found[0]): x for name, x in state.items() if name.startswith(found[0])}

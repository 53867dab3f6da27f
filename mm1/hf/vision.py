"""Configs of image encoders, as in their config.json, to ours and back: pure functions."""

from dataclasses import dataclass, field
from typing import Any

from mm1.config.model import VisionConfig
from mm1.hf.names import reverse
from mm1.model.encoders import CLIP_PIXELS, HALF_PIXELS, IMAGENET_PIXELS

_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}


@dataclass(frozen=True, slots=True)
class Family:
    """What a config.json leaves out about a family of encoders.

    `defaults` are those of its config class, which a config inside a larger one leaves out; `pixels` mean and std of
    its preprocessor_config.json; `parts` our fields that all encoders of the family share; `fixed` fields of theirs
    that must have one value, if they are there.
    """

    architecture: str
    defaults: dict[str, Any]
    pixels: tuple[tuple[float, float, float], tuple[float, float, float]]
    parts: dict[str, Any]
    fixed: dict[str, Any] = field(default_factory=dict)


_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224}
_DINOV2 = _BASE | {"mlp_ratio": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "use_swiglu_ffn": False}
_DINOV2_PARTS = {"class_token": True, "layer_scale": True}
_BIASED = {"qkv_bias": True}
_ATTENTION = ("query", "key", "value")

FAMILIES = {
    "clip_vision_model": Family(
        "CLIPVisionModel",
        _BASE | {"intermediate_size": 3072, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
        CLIP_PIXELS,
        {"class_token": True, "input_norm": True, "patch_bias": False},
    ),
    "siglip_vision_model": Family(
        "SiglipVisionModel",
        _BASE
        | {"intermediate_size": 3072, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
        HALF_PIXELS,
        {},
    ),
    **{
        f"{name}_vision": Family(
            "",
            _BASE
            | {"hidden_size": 1152, "num_attention_heads": 16, "intermediate_size": 3072, "patch_size": 32}
            | {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
            HALF_PIXELS,
            {},
        )
        for name in ("idefics3", "smolvlm")
    },
    "vit": Family(
        "ViTModel",
        _BASE | {"intermediate_size": 3072, "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-12},
        HALF_PIXELS,
        {"class_token": True},
        _BIASED,
    ),
    "dinov2": Family("Dinov2Model", _DINOV2 | {"patch_size": 14}, IMAGENET_PIXELS, _DINOV2_PARTS, _BIASED),
    "dinov2_with_registers": Family(
        "Dinov2WithRegistersModel",
        _DINOV2 | {"patch_size": 16, "num_register_tokens": 4},
        IMAGENET_PIXELS,
        _DINOV2_PARTS | {"antialias": True},
        _BIASED,
    ),
    "dinov3_vit": Family(
        "DINOv3ViTModel",
        {
            "hidden_size": 384,
            "num_hidden_layers": 12,
            "num_attention_heads": 6,
            "intermediate_size": 1536,
            "image_size": 224,
            "patch_size": 16,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "rope_theta": 100.0,
            "num_register_tokens": 0,
            "use_gated_mlp": False,
            "query_bias": True,
            "key_bias": False,
            "value_bias": True,
        },
        IMAGENET_PIXELS,
        _DINOV2_PARTS,
        {"proj_bias": True, "mlp_bias": True},
    ),
    "internvl_vision": Family(
        "",
        {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "image_size": 448,
            "patch_size": 14,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
            "attention_bias": False,
        },
        IMAGENET_PIXELS,
        {"class_token": True, "layer_scale": True, "feature_norm": False},
        {"use_qk_norm": False, "norm_type": "layer_norm", "use_absolute_position_embeddings": True}
        | {"use_mean_pooling": True},
    ),
    "aimv2_vision_model": Family(
        "Aimv2VisionModel",
        {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 8,
            "intermediate_size": 2816,
            "image_size": 224,
            "patch_size": 14,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "is_native": False,
        },
        CLIP_PIXELS,
        {"norm": "rms", "gated": True, "bias": False, "patch_norm": True},
        {"qkv_bias": False, "mlp_bias": False, "use_bias": False, "hidden_act": "silu"},
    ),
}
"""By model type. A family without an architecture is never alone, and not written.

The encoders of Idefics3 and SmolVLM are SigLIPs.

SigLIP 2 at a fixed resolution is a SigLIP; SigLIP 2 NaFlex is another model, which is not here."""


def vision_config_from_hf(theirs: dict[str, Any]) -> VisionConfig:
    """Our config for an image encoder of `FAMILIES`, alone or inside a larger model's config.

    If patches don't fill the image (SigLIP's 384 pixels in patches of 14), the image size is reduced to the pixels
    that they fill, as in their convolution.

    Raises:
        ValueError: another family, or a part that our ViT doesn't have.
    """
    theirs = theirs.get("vision_config", theirs)
    name = "aimv2_vision_model" if theirs.get("model_type") == "aimv2" else theirs.get("model_type", "")
    if name not in FAMILIES:
        raise ValueError(f"image encoders of type {name!r} can't be read; known: {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    whole = family.defaults | theirs
    whole |= {field: _side(whole[field], field) for field in ("image_size", "patch_size")}
    _refuse(whole, family)
    gated = family.parts.get("gated") or whole.get("use_swiglu_ffn", False) or whole.get("use_gated_mlp", False)
    mean, std = family.pixels
    return VisionConfig(
        image_size=whole["image_size"] - whole["image_size"] % whole["patch_size"],
        patch_size=whole["patch_size"],
        width=whole["hidden_size"],
        layers=whole["num_hidden_layers"],
        heads=whole["num_attention_heads"],
        mlp_width=_mlp_width(whole),
        activation="gelu" if gated else _activation(whole["hidden_act"]),
        gated=gated,
        norm_epsilon=whole["rms_norm_eps" if "rms_norm_eps" in whole else "layer_norm_eps"],
        registers=whole.get("num_register_tokens", 0),
        fixed_positions=whole.get("is_native", False),
        rope_base=whole.get("rope_theta"),
        no_bias_in=tuple(
            name for name in _ATTENTION if not whole.get(f"{name}_bias", whole.get("attention_bias", True))
        ),
        mean=mean,
        std=std,
        **{name: value for name, value in family.parts.items() if name != "gated"},
    )


def _side(theirs: int | list[int], field: str) -> int:
    """The side of a square, which some families give as height and width."""
    sides = {*theirs} if isinstance(theirs, list | tuple) else {theirs}
    if len(sides) > 1:
        raise ValueError(f"{field} is {theirs}, but only squares are supported")
    return sides.pop()


def _activation(theirs: str) -> Any:
    ours = reverse(_ACTIVATIONS)
    if theirs not in ours:
        raise ValueError(f"activation {theirs!r} is unknown; known: {', '.join(ours)}")
    return ours[theirs]


def _mlp_width(theirs: dict[str, Any]) -> int:
    if "mlp_ratio" not in theirs:
        return theirs["intermediate_size"]
    width = int(theirs["hidden_size"] * theirs["mlp_ratio"])
    # with a SwiGLU DINOv2 takes two thirds of it, rounded up to a multiple of 8
    return (int(width * 2 / 3) + 7) // 8 * 8 if theirs["use_swiglu_ffn"] else width


def _refuse(theirs: dict[str, Any], family: Family) -> None:
    """Raise if their encoder computes something else than ours."""
    expected = family.fixed | {"num_channels": 3} | ({"hidden_act": "silu"} if theirs.get("use_gated_mlp") else {})
    for name, value in expected.items():
        if theirs.get(name, value) != value:
            raise ValueError(f"{name} is {theirs[name]!r}, but in this family only {value!r} is supported")


def vision_config_to_hf(config: VisionConfig) -> dict[str, Any]:
    """A vision config of the family that has the parts of `config`.

    Theirs has mean, std and feature layer in other files, and resizes position embeddings by the family's rule,
    without regard to `config.antialias`.

    Raises:
        ValueError: no family has them; the message names the most similar one, and what differs.
    """
    differing = {}
    for name, family in FAMILIES.items():
        if not family.architecture:
            continue
        theirs = {"model_type": name, "architectures": [family.architecture], **_fields(config, family.defaults)}
        elsewhere = {key: getattr(config, key) for key in ("mean", "std", "feature_layer", "feature_norm", "antialias")}
        back = vision_config_from_hf(theirs).model_copy(update=elsewhere)
        if back == config:
            heads = {"siglip_vision_model": {"vision_use_head": False}, "aimv2_vision_model": {"use_head": False}}
            return theirs | heads.get(name, {}) | ({"use_mask_token": False} if name == "dinov2" else {})
        differing[name] = [f"{key} {value!r}" for key, value in config if getattr(back, key) != value]
    nearest = min(differing, key=lambda name: len(differing[name]))
    raise ValueError(
        f"no family has this encoder; {nearest} is the most similar one, but here is {', '.join(differing[nearest])}"
    )


def _fields(config: VisionConfig, defaults: dict[str, Any]) -> dict[str, Any]:
    """The fields that `defaults` names, with the values of `config`."""
    ratio = config.mlp_width / config.width * (1.5 if config.gated else 1)
    is_silu = defaults["hidden_act"] == "silu" or (config.gated and "use_gated_mlp" in defaults)
    values = {
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "mlp_ratio": round(ratio),
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_act": "silu" if is_silu else _ACTIVATIONS[config.activation],
        "layer_norm_eps": config.norm_epsilon,
        "rms_norm_eps": config.norm_epsilon,
        "use_swiglu_ffn": config.gated,
        "num_register_tokens": config.registers,
        "is_native": config.fixed_positions,
        "use_gated_mlp": config.gated,
        "rope_theta": config.rope_base or defaults.get("rope_theta"),
        **{f"{name}_bias": name not in config.no_bias_in for name in _ATTENTION},
    }
    return {name: values[name] for name in defaults}


def vision_config_from_openclip(theirs: dict[str, Any]) -> VisionConfig:
    """Our config for the ViT of an open_clip_config.json (https://github.com/mlfoundations/open_clip).

    Raises:
        ValueError: an image encoder of timm, a ResNet, or a ViT with parts that ours doesn't have.
    """
    model, pixels = theirs["model_cfg"], theirs.get("preprocess_cfg", {})
    vision = model["vision_cfg"]
    read = {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "ls_init_value"}
    unread = {name for name in vision.keys() - read if vision[name]} - {"timm_pool", "timm_proj", "output_tokens"}
    if unread or not isinstance(vision["layers"], int):
        raise ValueError(
            f"vision_cfg has {', '.join(sorted(unread)) or 'layers of a ResNet'}; only plain ViTs can be read"
        )
    mean, std = CLIP_PIXELS
    width = vision["width"]
    return VisionConfig(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        width=width,
        layers=vision["layers"],
        heads=width // vision.get("head_width", 64),
        mlp_width=int(width * vision.get("mlp_ratio", 4.0)),
        activation="quick_gelu" if model.get("quick_gelu") else "gelu",
        norm_epsilon=1e-5,
        layer_scale=vision.get("ls_init_value") is not None,
        antialias=True,  # its resize_pos_embed
        mean=tuple(pixels.get("mean", mean)),
        std=tuple(pixels.get("std", std)),
        **FAMILIES["clip_vision_model"].parts,
    )


def vision_config_from_aim(theirs: dict[str, Any]) -> VisionConfig:
    """Our config for an AIM, from the arguments of its own code (https://github.com/apple/ml-aim)."""
    return VisionConfig(
        image_size=theirs["img_size"],
        patch_size=theirs["patch_size"],
        width=theirs["embed_dim"],
        layers=theirs["num_blocks"],
        heads=theirs["num_heads"],
        mlp_width=4 * theirs["embed_dim"],
        bias=False,
        patch_norm=True,
        fixed_positions=True,
        mean=IMAGENET_PIXELS[0],
        std=IMAGENET_PIXELS[1],
    )


def is_aim(config: VisionConfig) -> bool:
    """Whether this is an encoder of AIM's kind, which `transformers` doesn't have."""
    return config.patch_norm and config.norm == "layer"


def vision_config_to_aim(config: VisionConfig) -> dict[str, Any]:
    """The arguments of AIM's own code for an encoder of its kind.

    Raises:
        ValueError: AIM has other parts.
    """
    theirs = {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "num_blocks": config.layers,
        "num_heads": config.heads,
    }
    back = vision_config_from_aim(theirs)
    differing = [f"{key} {value!r}" for key, value in config if getattr(back, key) != value]
    if differing := [text for text in differing if not text.startswith(("mean ", "std "))]:
        raise ValueError(f"AIM has no such encoder: here is {', '.join(differing)}")
    return theirs

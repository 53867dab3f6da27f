"""Connectors against their formulas and the paper's parameter counts."""

import pytest
import torch
import torch.nn.functional as F

from mm1.config import ConnectorConfig, VisionConfig, choices
from mm1.model.connector import KINDS, Average, Bottleneck, average
from mm1.model.layers import initialise
from mm1.model.sizes import c_abstractor_144, vit_h_14_378

VISION = VisionConfig(image_size=30, patch_size=6, width=24, layers=1, heads=2, mlp_width=40)


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
@pytest.mark.parametrize("patches", [16, 25, 81])
def test_any_grid_becomes_the_image_tokens(kind, patches):
    features_NPE = torch.randn(3, patches, 24)
    assert build(kind)(features_NPE).shape == (3, 4, 20)


@pytest.mark.parametrize("kind", KINDS)
def test_images_do_not_mix(kind):
    connector, features_NPE = build(kind), torch.randn(3, 25, 24)
    alone = torch.cat([connector(x[None]) for x in features_NPE])
    torch.testing.assert_close(connector(features_NPE), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("width", "millions"), [(3072, 31), (4096, 39), (7168, 77)])
def test_c_abstractor_has_the_papers_parameters(width, millions):
    with torch.device("meta"):
        connector = KINDS["c_abstractor"](c_abstractor_144(), vision=vit_h_14_378(), width=width)
    assert round(sum(p.numel() for p in connector.parameters()) / 1e6) == millions


@pytest.mark.parametrize(("grid", "side"), [(24, 12), (24, 8), (27, 12), (5, 2), (7, 7), (16, 12)])
def test_average_equals_adaptive_pooling(grid, side):
    x_NYXC = torch.randn(2, grid, grid, 6)
    expected = F.adaptive_avg_pool2d(x_NYXC.permute(0, 3, 1, 2), side).permute(0, 2, 3, 1)
    torch.testing.assert_close(average(x_NYXC, side), expected, atol=1e-6, rtol=1e-5)


def test_average_connector_keeps_the_layout():
    connector = Average(ConnectorConfig(tokens=4), vision=VISION, width=20)
    features_NPE = torch.zeros(1, 16, 24)
    features_NPE[0, 3] = 1.0  # the patch in the upper right corner
    tokens = connector(features_NPE) - connector(torch.zeros(1, 16, 24))
    assert tokens[0].abs().sum(-1).bool().tolist() == [False, True, False, False]


def norm(x, layer):
    return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, 1e-6)


def test_attention_pooling_equals_its_formula():
    connector, features_NPE = build("attention"), torch.randn(3, 25, 24)
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
    expected = F.linear(norm(x, connector.norm), connector.out.weight, connector.out.bias)
    torch.testing.assert_close(connector(features_NPE), expected, atol=1e-5, rtol=1e-5)


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


def test_c_abstractor_equals_its_formula():
    connector, features_NPE = build("c_abstractor"), torch.randn(3, 25, 24)
    x = (features_NPE + connector.position_PE).unflatten(1, (5, 5)).permute(0, 3, 1, 2)
    for block in connector.before:
        x = bottleneck_by_convolutions(block, x)
    x = F.adaptive_avg_pool2d(x, 2)
    for block in connector.after:
        x = bottleneck_by_convolutions(block, x)
    x = x.flatten(2).mT
    x = F.silu(F.linear(x, connector.up.weight, connector.up.bias))
    expected = F.linear(x, connector.out.weight, connector.out.bias)
    torch.testing.assert_close(connector(features_NPE), expected, atol=2e-5, rtol=1e-4)


def test_only_the_first_bottleneck_has_a_shortcut_of_its_own():
    connector = build("c_abstractor")
    assert [block.shortcut is not None for block in (*connector.before, *connector.after)] == [
        True,
        *[False] * 3,
    ]
    assert connector.before[0].squeeze.out_features == 6  # a quarter of what comes in
    assert connector.before[1].squeeze.out_features == 4

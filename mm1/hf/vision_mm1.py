"""The image encoders and connectors of mm1 for `transformers`; an export has this file beside `modeling_mm1.py`.

Tensors and axes are named as in mm1: N images, Y and X their rows and columns, P patches, Q all tokens of an image,
E channels of the encoder; S image tokens, C channels of the connector, D of the decoder.
"""

# mypy: ignore-errors

import torch
import torch.nn.functional as F
from torch import nn

from mm1.model.rotary import patch_angles, rotate

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


class LayerScale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.weight


class FeedForward(nn.Module):
    """Two linear layers with an activation between them; a SwiGLU if `gated`."""

    def __init__(self, width, mlp_width, bias=False, activation="silu", gated=True):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.gate = nn.Linear(width, mlp_width, bias=bias) if gated else None
        self.up = nn.Linear(width, mlp_width, bias=bias)
        self.down = nn.Linear(mlp_width, width, bias=bias)

    def forward(self, x):
        active = self.activation((self.gate or self.up)(x))
        return self.down(active * self.up(x) if self.gate else active)


class Attention(nn.Module):
    """Attention of all positions of `x` over all positions of `context`."""

    def __init__(self, width, context_width, heads, bias=True, no_bias_in=()):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=bias and "query" not in no_bias_in)
        self.key = nn.Linear(context_width, width, bias=bias and "key" not in no_bias_in)
        self.value = nn.Linear(context_width, width, bias=bias and "value" not in no_bias_in)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, x, context, angles=None):
        projected = self.query(x), self.key(context), self.value(context)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in projected)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class VisionBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, norm = config.width, nn.RMSNorm if config.norm == "rms" else nn.LayerNorm
        self.attention_norm = norm(width, config.norm_epsilon)
        self.attention = Attention(width, width, config.heads, config.bias, config.no_bias_in)
        self.attention_scale = LayerScale(width) if config.layer_scale else nn.Identity()
        self.feed_forward_norm = norm(width, config.norm_epsilon)
        activation = "silu" if config.gated else config.activation
        self.feed_forward = FeedForward(width, config.mlp_width, config.bias, activation, config.gated)
        self.feed_forward_scale = LayerScale(width) if config.layer_scale else nn.Identity()

    def forward(self, x_NQE, angles):
        y_NQE = self.attention_norm(x_NQE)
        x_NQE = x_NQE + self.attention_scale(self.attention(y_NQE, y_NQE, angles))
        return x_NQE + self.feed_forward_scale(self.feed_forward(self.feed_forward_norm(x_NQE)))


class Vision(nn.Module):
    """A ViT from normalised pixels [N, channels, Y, X] to features [N, P, E] of the layer `feature_layer`."""

    def __init__(self, config):
        super().__init__()
        self.config, self.grid = config, config.image_size // config.patch_size
        width, norm = config.width, nn.RMSNorm if config.norm == "rms" else nn.LayerNorm
        self.patch = nn.Linear(3 * config.patch_size**2, width, bias=config.patch_bias)
        self.patch_norm = norm(width, config.norm_epsilon) if config.patch_norm else nn.Identity()
        self.class_E = nn.Parameter(torch.zeros(width)) if config.class_token else None
        self.register_RE = nn.Parameter(torch.zeros(config.registers, width)) if config.registers else None
        positions = self.grid**2 + config.class_token
        learned = not config.fixed_positions and config.rope_base is None
        self.position_PE = nn.Parameter(torch.zeros(positions, width)) if learned else None
        self.input_norm = norm(width, config.norm_epsilon) if config.input_norm else nn.Identity()
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.layers))
        self.norm = norm(width, config.norm_epsilon)

    def forward(self, images_NCYX):
        config, size = self.config, self.config.patch_size
        side = self.grid * size  # a tile may be larger than its patches
        patches = (
            images_NCYX[:, :, :side, :side].unflatten(3, (-1, size)).unflatten(2, (-1, size)).permute(0, 2, 4, 1, 3, 5)
        )
        x_NPE = self.patch_norm(self.patch(patches.flatten(3).flatten(1, 2).to(self.patch.weight.dtype)))
        x_NQE, learned = x_NPE, self.position_PE is not None
        if config.fixed_positions:
            x_NQE = x_NPE + fixed_positions(self.grid, x_NPE)
        elif learned:
            x_NQE = x_NPE + self.position_PE[int(config.class_token) :]
        if self.register_RE is not None:
            x_NQE = torch.cat((self.register_RE.expand(len(x_NPE), -1, -1), x_NQE), 1)
        if self.class_E is not None:
            class_E = self.class_E + self.position_PE[0] if learned else self.class_E
            x_NQE = torch.cat((class_E.expand(len(x_NPE), 1, -1), x_NQE), 1)
        x_NQE, before, angles = self.input_norm(x_NQE), config.class_token + config.registers, None
        if config.rope_base is not None:
            rotary = {"width": config.width // config.heads, "base": config.rope_base, "before": before}
            angles = patch_angles((self.grid, self.grid), **rotary, like=x_NQE)
        for block in self.blocks[: config.layers + 1 + config.feature_layer]:
            x_NQE = block(x_NQE, angles)
        if config.feature_layer == -1 and config.feature_norm:
            x_NQE = self.norm(x_NQE)
        return x_NQE[:, before:]


def fixed_positions(grid, like):
    """Sines and cosines of each patch's column, then of its row, [P, E]."""
    quarter = like.shape[-1] // 4
    index, channel = (torch.arange(count, device=like.device).float() for count in (grid, quarter))
    angle = index[:, None] * 10_000 ** -(channel / quarter)
    wave = torch.cat((angle.sin(), angle.cos()), -1)
    columns, rows = wave.expand(grid, -1, -1), wave[:, None].expand(-1, grid, -1)
    return torch.cat((columns, rows), -1).flatten(0, 1).to(like.dtype)


class Bottleneck(nn.Module):
    """A RegNet block with squeeze-and-excitation on [N, Y, X, C]."""

    def __init__(self, inputs, channels):
        super().__init__()
        self.inner = nn.Linear(inputs, channels, bias=False)
        self.inner_norm = nn.LayerNorm(channels, eps=1e-6)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.depthwise_norm = nn.LayerNorm(channels, eps=1e-6)
        self.squeeze = nn.Linear(channels, round(inputs * 0.25))
        self.excite = nn.Linear(round(inputs * 0.25), channels)
        self.out = nn.Linear(channels, channels, bias=False)
        self.out_norm = nn.LayerNorm(channels, eps=1e-6)
        self.shortcut = None if inputs == channels else nn.Linear(inputs, channels, bias=False)
        self.shortcut_norm = None if inputs == channels else nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x_NYXC):
        y_NYXC = F.silu(self.inner_norm(self.inner(x_NYXC)))
        y_NYXC = F.silu(self.depthwise_norm(self.depthwise(y_NYXC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
        y_NYXC = y_NYXC * self.excite(F.silu(self.squeeze(y_NYXC.mean((1, 2), keepdim=True)))).sigmoid()
        y_NYXC = self.out_norm(self.out(y_NYXC))
        x_NYXC = self.shortcut_norm(self.shortcut(x_NYXC)) if self.shortcut else x_NYXC
        return F.silu(x_NYXC + y_NYXC)


class PoolingBlock(nn.Module):
    def __init__(self, config, features):
        super().__init__()
        self.query_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.feature_norm = nn.LayerNorm(features, eps=1e-6)
        self.attention = Attention(config.width, features, config.heads)
        self.feed_forward_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.feed_forward = FeedForward(config.width, 4 * config.width, True, "gelu", False)

    def forward(self, x, features_NPE):
        x = x + self.attention(self.query_norm(x), self.feature_norm(features_NPE))
        return x + self.feed_forward(self.feed_forward_norm(x))


class Connector(nn.Module):
    """From P patch features of an image to S image tokens of the decoder's width, by the connector `kind`.

    With `row_ends` one more feature follows them, which is learned: it ends a row of tiles.
    """

    def __init__(self, config, vision, width, row_ends=False):
        super().__init__()
        self.row_end_D = nn.Parameter(torch.zeros(width)) if row_ends else None
        self.kind, self.side = config.kind, round(config.tokens**0.5)
        self.grid, features = vision.image_size // vision.patch_size, vision.width
        if config.kind == "mlp":
            self.up = nn.Linear(features, width)
            features = width
        elif config.kind.startswith("pixel_shuffle"):
            self.block = -(-self.grid // self.side)
            features *= self.block**2
            if config.kind == "pixel_shuffle_mlp":
                self.norm, self.up = nn.LayerNorm(features), nn.Linear(features, width)
                features = width
        elif config.kind == "attention":
            self.query_SC = nn.Parameter(torch.zeros(config.tokens, config.width))
            self.blocks = nn.ModuleList(PoolingBlock(config, features) for _ in range(config.depth))
            self.norm = nn.LayerNorm(config.width, eps=1e-6)
            features = config.width
        elif config.kind == "c_abstractor":
            self.position_PE = nn.Parameter(torch.zeros(self.grid**2, features))
            inputs = [features, *[config.width] * config.depth]
            self.before = nn.Sequential(*(Bottleneck(inputs[i], config.width) for i in range(config.depth)))
            self.after = nn.Sequential(*(Bottleneck(config.width, config.width) for _ in range(config.depth)))
            self.up = nn.Linear(inputs[-1], width)
            features = width
        self.out = nn.Linear(features, width, bias=config.kind != "pixel_shuffle")

    def forward(self, features_NPE):
        x_NSD = self.project(features_NPE)
        if self.row_end_D is None:
            return x_NSD
        return torch.cat((x_NSD, self.row_end_D.expand(len(x_NSD), 1, -1)), 1)

    def project(self, features_NPE):
        if self.kind == "attention":
            x = self.query_SC.expand(len(features_NPE), -1, -1)
            for block in self.blocks:
                x = block(x, features_NPE)
            return self.out(self.norm(x))
        if self.kind == "c_abstractor":
            features_NPE = features_NPE + self.position_PE
        x_NYXC = features_NPE.unflatten(1, (self.grid, self.grid))
        if self.kind == "c_abstractor":
            x_NYXC = average(self.before(x_NYXC), self.side)
            return self.out(F.silu(self.up(self.after(x_NYXC).flatten(1, 2))))
        if self.kind.startswith("pixel_shuffle"):
            x_NYXC = sample(x_NYXC, self.side * self.block)
            blocks = x_NYXC.unflatten(2, (self.side, self.block)).unflatten(1, (self.side, self.block))
            x_NSC = blocks.transpose(2, 3).flatten(3).flatten(1, 2)
            return self.out(x_NSC if self.kind == "pixel_shuffle" else F.gelu(self.up(self.norm(x_NSC))))
        x_NSC = (sample if self.kind == "linear" else average)(x_NYXC, self.side).flatten(1, 2)
        return self.out(F.gelu(self.up(x_NSC)) if self.kind == "mlp" else x_NSC)


def average(x_NYXC, side):
    return F.adaptive_avg_pool2d(x_NYXC.permute(0, 3, 1, 2), side).permute(0, 2, 3, 1)


def sample(x_NYXC, side):
    if x_NYXC.shape[1] == side:
        return x_NYXC
    return F.interpolate(x_NYXC.permute(0, 3, 1, 2), (side, side), mode="bilinear").permute(0, 2, 3, 1)

"""A model of mm1 for `transformers`; an export has this file if no class of `transformers` fits its weights.

It needs torch and transformers, but not mm1. Parts, tensors and axes are named as in mm1: B sequences, T tokens,
D channels, H heads of W channels, L positions of the keys, V tokens of the vocabulary, A all tokens of all sequences;
N images, Y and X their rows and columns, P patches, Q all tokens of an image, E channels of the encoder; S image
tokens, C channels of the connector.
"""

# mypy: ignore-errors

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


class MM1Config(PretrainedConfig):
    """`mm1` is the config of the model in mm1; the other fields repeat what `transformers` needs from a config."""

    model_type = "mm1"

    def __init__(self, mm1=None, image_token_id=None, **kwargs):
        self.mm1, self.image_token_id = mm1, image_token_id
        super().__init__(**kwargs)

    def part(self, name):
        return SimpleNamespace(**self.mm1["model"][name])


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
        self.activation = F.silu if gated else ACTIVATIONS[activation]
        self.gate = nn.Linear(width, mlp_width, bias=bias) if gated else None
        self.up = nn.Linear(width, mlp_width, bias=bias)
        self.down = nn.Linear(mlp_width, width, bias=bias)

    def forward(self, x):
        active = self.activation((self.gate or self.up)(x))
        return self.down(active * self.up(x) if self.gate else active)


class Attention(nn.Module):
    """Attention of all positions of `x` over all positions of `context`."""

    def __init__(self, width, context_width, heads, bias=True):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(context_width, width, bias=bias)
        self.value = nn.Linear(context_width, width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, x, context):
        projected = self.query(x), self.key(context), self.value(context)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in projected)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class VisionBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, norm = config.width, nn.RMSNorm if config.norm == "rms" else nn.LayerNorm
        self.attention_norm = norm(width, config.norm_epsilon)
        self.attention = Attention(width, width, config.heads, config.bias)
        self.attention_scale = LayerScale(width) if config.layer_scale else nn.Identity()
        self.feed_forward_norm = norm(width, config.norm_epsilon)
        self.feed_forward = FeedForward(width, config.mlp_width, config.bias, config.activation, config.gated)
        self.feed_forward_scale = LayerScale(width) if config.layer_scale else nn.Identity()

    def forward(self, x_NQE):
        y_NQE = self.attention_norm(x_NQE)
        x_NQE = x_NQE + self.attention_scale(self.attention(y_NQE, y_NQE))
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
        self.position_PE = None if config.fixed_positions else nn.Parameter(torch.zeros(positions, width))
        self.input_norm = norm(width, config.norm_epsilon) if config.input_norm else nn.Identity()
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.layers))
        self.norm = norm(width, config.norm_epsilon)

    def forward(self, images_NCYX):
        config, size = self.config, self.config.patch_size
        patches = images_NCYX.unflatten(3, (-1, size)).unflatten(2, (-1, size)).permute(0, 2, 4, 1, 3, 5)
        x_NPE = self.patch_norm(self.patch(patches.flatten(3).flatten(1, 2).to(self.patch.weight.dtype)))
        fixed = self.position_PE is None
        x_NQE = x_NPE + (fixed_positions(self.grid, x_NPE) if fixed else self.position_PE[int(config.class_token) :])
        if self.register_RE is not None:
            x_NQE = torch.cat((self.register_RE.expand(len(x_NPE), -1, -1), x_NQE), 1)
        if self.class_E is not None:
            class_E = self.class_E if fixed else self.class_E + self.position_PE[0]
            x_NQE = torch.cat((class_E.expand(len(x_NPE), 1, -1), x_NQE), 1)
        x_NQE = self.input_norm(x_NQE)
        for block in self.blocks[: config.layers + 1 + config.feature_layer]:
            x_NQE = block(x_NQE)
        if config.feature_layer == -1:
            x_NQE = self.norm(x_NQE)
        return x_NQE[:, config.class_token + config.registers :]


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
    """From P patch features of an image to S image tokens of the decoder's width, by the connector `kind`."""

    def __init__(self, config, vision, width):
        super().__init__()
        self.kind, self.side = config.kind, round(config.tokens**0.5)
        self.grid, features = vision.image_size // vision.patch_size, vision.width
        if config.kind == "mlp":
            self.up = nn.Linear(features, width)
            features = width
        elif config.kind == "pixel_shuffle":
            self.block = -(-self.grid // self.side)
            features *= self.block**2
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
        if self.kind == "pixel_shuffle":
            x_NYXC = sample(x_NYXC, self.side * self.block)
            blocks = x_NYXC.unflatten(2, (self.side, self.block)).unflatten(1, (self.side, self.block))
            return self.out(blocks.transpose(2, 3).flatten(3).flatten(1, 2))
        x_NSC = (sample if self.kind == "linear" else average)(x_NYXC, self.side).flatten(1, 2)
        return self.out(F.gelu(self.up(x_NSC)) if self.kind == "mlp" else x_NSC)


def average(x_NYXC, side):
    return F.adaptive_avg_pool2d(x_NYXC.permute(0, 3, 1, 2), side).permute(0, 2, 3, 1)


def sample(x_NYXC, side):
    if x_NYXC.shape[1] == side:
        return x_NYXC
    return F.interpolate(x_NYXC.permute(0, 3, 1, 2), (side, side), mode="bilinear").permute(0, 2, 3, 1)


class SelfAttention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.head_width, self.rotates = layer, config.head_width, layer not in config.no_rope_layers
        queries, keys = config.heads * config.head_width, config.kv_heads * config.head_width
        self.query = nn.Linear(config.width, queries, bias=config.qkv_bias)
        self.key = nn.Linear(config.width, keys, bias=config.qkv_bias)
        self.value = nn.Linear(config.width, keys, bias=config.qkv_bias)
        self.out = nn.Linear(queries, config.width, bias=False)
        norm = nn.RMSNorm if config.qk_norm else nn.Identity
        self.query_norm, self.key_norm = (norm(config.head_width, config.norm_epsilon) for _ in "qk")

    def forward(self, x_BTD, angles, mask, cache):
        projected = self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)
        q, k, v = (y.unflatten(-1, (-1, self.head_width)) for y in projected)
        q, k, v = self.query_norm(q).transpose(1, 2), self.key_norm(k).transpose(1, 2), v.transpose(1, 2)
        if self.rotates:
            q, k = rotate(q, angles), rotate(k, angles)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        y = F.scaled_dot_product_attention(q, k, v, mask[..., : k.shape[2]], enable_gqa=q.shape[1] != k.shape[1])
        return self.out(y.transpose(1, 2).flatten(2))


def rotary_angles(position_BT, config):
    channel_W = torch.arange(0, config.head_width, 2, device=position_BT.device).float()
    frequency_W = 1 / config.rope_base ** (channel_W / config.head_width)
    if config.rope_scaling is not None:
        factor, low, high, original_length = config.rope_scaling
        kept_W = ((original_length * frequency_W / (2 * torch.pi) - low) / (high - low)).clamp(0, 1)
        frequency_W = frequency_W * (kept_W + (1 - kept_W) / factor)
    angle_B1TW = (position_BT[..., None].float() * frequency_W)[:, None]
    cos, sin = angle_B1TW.cos(), angle_B1TW.sin()
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def rotate(x_BHTW, angles):
    cos, sin = angles
    return (x_BHTW * cos + x_BHTW.roll(x_BHTW.shape[-1] // 2, -1) * sin).to(x_BHTW.dtype)


class SparseFeedForward(nn.Module):
    """Each token goes through the top k experts of a router, whose weights add up to one."""

    def __init__(self, config):
        super().__init__()
        self.top_k = config.sparse["top_k"]
        self.router = nn.Linear(config.width, config.sparse["experts"], bias=False)
        inner, width = config.mlp_width, config.width
        shapes = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
        empty = {name: torch.zeros(config.sparse["experts"], *shape) for name, shape in shapes.items()}
        self.experts = nn.ModuleDict({name: nn.ParameterDict({"weight": x}) for name, x in empty.items()})

    def forward(self, x_BTD):
        x_AD = x_BTD.flatten(0, 1)
        weights, experts = F.linear(x_AD.float(), self.router.weight.float()).softmax(-1).topk(self.top_k)
        weights = (weights / weights.sum(-1, keepdim=True)).to(x_AD.dtype)
        y_AD = torch.zeros_like(x_AD)
        for expert in experts.unique().tolist():
            token, rank = (experts == expert).nonzero(as_tuple=True)
            gate, up, down = (matrix["weight"][expert] for matrix in self.experts.values())
            part_AD = F.linear(F.silu(F.linear(x_AD[token], gate)) * F.linear(x_AD[token], up), down)
            y_AD.index_add_(0, token, part_AD * weights[token, rank, None])
        return y_AD.view_as(x_BTD)


class DecoderBlock(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        sparse = config.sparse["experts"] and (layer + 1) % config.sparse["every"] == 0
        self.attention_norm = nn.RMSNorm(config.width, config.norm_epsilon)
        self.attention = SelfAttention(config, layer)
        self.feed_forward_norm = nn.RMSNorm(config.width, config.norm_epsilon)
        self.feed_forward = SparseFeedForward(config) if sparse else FeedForward(config.width, config.mlp_width)

    def forward(self, x_BTD, angles, mask, cache):
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), angles, mask, cache)
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(DecoderBlock(config, layer) for layer in range(config.layers))
        self.norm = nn.RMSNorm(config.width, config.norm_epsilon)
        self.output = None if config.tie_embeddings else nn.Linear(config.width, config.vocabulary, bias=False)

    def forward(self, x_BTD, position_BT, mask, cache):
        angles = rotary_angles(position_BT, self.config)
        for block in self.blocks:
            x_BTD = block(x_BTD, angles, mask, cache)
        return self.norm(x_BTD)

    def logits(self, hidden):
        return F.linear(hidden, (self.embedding if self.output is None else self.output).weight)


def visible(attention_mask, length):
    """Which of L positions each of the last T = `length` sees, [B, 1, T, L]: no later one, no padding but itself."""
    key_L = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    query_T1 = key_L[-length:, None]
    return (key_L <= query_T1) & attention_mask[:, None, None].bool() | (key_L == query_T1)


class MM1ForConditionalGeneration(PreTrainedModel, GenerationMixin):
    config_class = MM1Config
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        if config.mm1["part"] == "model":
            self.vision = Vision(config.part("vision"))
            self.connector = Connector(config.part("connector"), config.part("vision"), config.part("decoder").width)
        self.decoder = Decoder(config.part("decoder"))
        self.post_init()

    def get_input_embeddings(self):
        return self.decoder.embedding

    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        *,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        **kwargs,
    ):
        x_BTD = self.decoder.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        image_BT = None if input_ids is None else input_ids == self.config.image_token_id
        if pixel_values is not None and image_BT is not None and image_BT.any():
            features = self.connector(self.vision(pixel_values)).flatten(0, 1).to(x_BTD.dtype)
            if len(features) != image_BT.sum():
                raise ValueError(f"{int(image_BT.sum())} image tokens in the text, but {len(features)} from the images")
            x_BTD = x_BTD.masked_scatter(image_BT[..., None], features)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        first, length = 0 if past_key_values is None else past_key_values.get_seq_length(), x_BTD.shape[1]
        if attention_mask is None:
            attention_mask = torch.ones(len(x_BTD), first + length, device=x_BTD.device)
        if position_ids is None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, first : first + length]
        hidden_BTD = self.decoder(x_BTD, position_ids, visible(attention_mask, length), past_key_values)
        positions = logits_to_keep if torch.is_tensor(logits_to_keep) else slice(-logits_to_keep, None)  # -0: all
        logits_BTV = self.decoder.logits(hidden_BTD[:, positions])
        loss = None if labels is None else self.loss_function(logits_BTV, labels, self.config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits_BTV, past_key_values=past_key_values)

    def _expand_inputs_for_generation(self, expand_size=1, pixel_values=None, **inputs):
        expanded = super()._expand_inputs_for_generation(expand_size, **inputs)
        if pixel_values is not None:  # each copy of a sequence gets all images of the sequence
            tokens_B = (inputs["input_ids"] == self.config.image_token_id).sum(1)
            images_B = pixel_values.split((tokens_B * len(pixel_values) // tokens_B.sum()).tolist())
            expanded[1]["pixel_values"] = torch.cat([x for x in images_B for _ in range(expand_size)])
        return expanded

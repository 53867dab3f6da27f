"""A model of mm1 for `transformers`; an export has this file if no class of `transformers` fits its weights.

With the files beside it, it needs torch and transformers, but not mm1. Parts, tensors and axes are named as in mm1: B
sequences, T tokens, D channels, H heads of W channels, L positions of the keys, V tokens of the vocabulary, A all
tokens of all sequences.
"""

# mypy: ignore-errors

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from mm1.hf.vision_mm1 import Connector, FeedForward, Vision
from mm1.model.rotary import rotary_angles, rotate


class MM1Config(PretrainedConfig):
    """`mm1` is the config of the model in mm1; the other fields repeat what `transformers` needs from a config."""

    model_type = "mm1"

    def __init__(self, mm1=None, image_token_id=None, row_ends=False, **kwargs):
        self.mm1, self.image_token_id, self.row_ends = mm1, image_token_id, row_ends
        super().__init__(**kwargs)

    def part(self, name):
        part = SimpleNamespace(**self.mm1["model"][name])
        if getattr(part, "rope_scaling", None) is not None:
            part.rope_scaling = SimpleNamespace(**part.rope_scaling)
        return part


class SelfAttention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.head_width, self.rotates = layer, config.head_width, layer not in config.no_rope_layers
        queries, keys = config.heads * config.head_width, config.kv_heads * config.head_width
        self.query = nn.Linear(config.width, queries, bias=config.qkv_bias)
        self.key = nn.Linear(config.width, keys, bias=config.qkv_bias)
        self.value = nn.Linear(config.width, keys, bias=config.qkv_bias)
        self.out = nn.Linear(queries, config.width, bias=config.out_bias)
        norm, self.norms_heads = nn.RMSNorm if config.qk_norm else nn.Identity, not config.qk_norm_across_heads
        widths = (config.head_width, config.head_width) if self.norms_heads else (queries, keys)
        self.query_norm, self.key_norm = (norm(width, config.norm_epsilon) for width in widths)

    def forward(self, x_BTD, angles, mask, cache):
        q, k, v = self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)
        if not self.norms_heads:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k, v = (y.unflatten(-1, (-1, self.head_width)) for y in (q, k, v))
        if self.norms_heads:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.rotates:
            q, k = rotate(q, angles), rotate(k, angles)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        y = F.scaled_dot_product_attention(q, k, v, mask[..., : k.shape[2]], enable_gqa=q.shape[1] != k.shape[1])
        return self.out(y.transpose(1, 2).flatten(2))


class SparseFeedForward(nn.Module):
    """Each token goes through the top k experts of a router, whose weights add up to one."""

    def __init__(self, config):
        super().__init__()
        self.top_k, self.normalizes = config.sparse["top_k"], config.sparse["normalize"]
        self.router = nn.Linear(config.width, config.sparse["experts"], bias=False)
        inner, width = config.mlp_width, config.width
        shapes = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
        empty = {name: torch.zeros(config.sparse["experts"], *shape) for name, shape in shapes.items()}
        self.experts = nn.ModuleDict({name: nn.ParameterDict({"weight": x}) for name, x in empty.items()})

    def forward(self, x_BTD):
        x_AD = x_BTD.flatten(0, 1)
        weights, experts = F.linear(x_AD.float(), self.router.weight.float()).softmax(-1).topk(self.top_k)
        weights = (weights / weights.sum(-1, keepdim=True) if self.normalizes else weights).to(x_AD.dtype)
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
        self.norm_after = config.norm_after
        self.attention_norm = nn.RMSNorm(config.width, config.norm_epsilon)
        self.attention = SelfAttention(config, layer)
        self.feed_forward_norm = nn.RMSNorm(config.width, config.norm_epsilon)
        self.feed_forward = (
            SparseFeedForward(config) if sparse else FeedForward(config.width, config.mlp_width, config.mlp_bias)
        )

    def forward(self, x_BTD, angles, mask, cache):
        if self.norm_after:
            x_BTD = x_BTD + self.attention_norm(self.attention(x_BTD, angles, mask, cache))
            return x_BTD + self.feed_forward_norm(self.feed_forward(x_BTD))
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
            width = config.part("decoder").width
            self.connector = Connector(config.part("connector"), config.part("vision"), width, config.row_ends)
        self.decoder = Decoder(config.part("decoder"))
        self.post_init()

    def get_input_embeddings(self):
        return self.decoder.embedding

    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        *,
        feature_BT=None,
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
            if feature_BT is not None:  # the number of each image token's feature; without it they are in order
                features = features[feature_BT[image_BT[:, : feature_BT.shape[1]]]]
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
        if inputs.get("feature_BT") is not None:  # copies of a sequence take the same features
            expanded[1]["pixel_values"] = pixel_values
        elif pixel_values is not None:  # each copy of a sequence gets all images of the sequence
            tokens_B = (inputs["input_ids"] == self.config.image_token_id).sum(1)
            images_B = pixel_values.split((tokens_B * len(pixel_values) // tokens_B.sum()).tolist())
            expanded[1]["pixel_values"] = torch.cat([x for x in images_B for _ in range(expand_size)])
        return expanded

"""A model of mm1 for `transformers`; an export has this file if no class of `transformers` fits its weights.

With the files beside it, it needs torch and transformers, but not mm1. Parts, tensors and axes are named as in mm1: B
sequences, T tokens, D channels, H heads of W channels, L positions of the keys, V tokens of the vocabulary, A all
tokens of all sequences.
"""

# mypy: ignore-errors
# ruff: noqa: RUF012, that is how transformers has it

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mm1.hf.vision_mm1 import Connector, FeedForward, Vision
from mm1.model.rotary import rotary_angles, rotate
from mm1.model.softcap import capped_attention, soft_cap

GROUPS = "num_key_value_groups"
"""How the attention of `transformers` asks a module for the query heads of a key head."""


class MM1TextConfig(PretrainedConfig):
    """A decoder: `mm1_decoder` is its config in mm1; the other fields are what `transformers` and vLLM ask for."""

    model_type = "mm1_text"
    base_config_key = "text_config"

    def __init__(self, mm1_decoder=None, mm1=None, **kwargs):
        self.mm1_decoder, self.mm1 = mm1_decoder or (mm1 or {}).get("model", {}).get("decoder"), mm1
        super().__init__(**kwargs)


class MM1Config(PretrainedConfig):
    """`mm1` records the run and the config of its model; `text_config` is that of the decoder."""

    model_type = "mm1"
    sub_configs = {"text_config": MM1TextConfig}

    def __init__(self, mm1=None, text_config=None, image_token_id=None, row_ends=False, **kwargs):
        self.mm1, self.image_token_id, self.row_ends = mm1, image_token_id, row_ends
        self.text_config = MM1TextConfig(**text_config) if isinstance(text_config, dict) else text_config
        if self.text_config is None:
            self.text_config = MM1TextConfig()
        if mm1 is not None:
            self.text_config.mm1_decoder = mm1["model"]["decoder"]
        super().__init__(**kwargs)

    def part(self, name):
        return SimpleNamespace(**self.mm1["model"][name])


def decoder_of(config):
    """The config of the decoder in mm1, with attributes for fields."""
    decoder = SimpleNamespace(**config.mm1_decoder)
    if decoder.rope_scaling is not None:
        decoder.rope_scaling = SimpleNamespace(**decoder.rope_scaling)
    return decoder


def window_of(decoder, layer):
    """The window of a layer, None if it sees all."""
    return None if layer in decoder.full_layers else decoder.window


class OffsetRMSNorm(nn.RMSNorm):
    """Times 1 + weight."""

    def forward(self, x):
        return F.rms_norm(x.float(), self.normalized_shape, 1 + self.weight.float(), self.eps).to(x.dtype)


def norm_of(decoder, width, there=True):
    kind = OffsetRMSNorm if decoder.norm_offset else nn.RMSNorm
    return kind(width, decoder.norm_epsilon) if there else nn.Identity()


class SelfAttention(nn.Module):
    """Attention by the implementation that `transformers` or vLLM chooses."""

    is_causal = True

    def __init__(self, config, layer):
        super().__init__()
        self.config, decoder = config, decoder_of(config)
        self.layer_idx, self.head_width, self.rotates = layer, decoder.head_width, layer not in decoder.no_rope_layers
        self.scaling, self.sliding_window = decoder.query_scale or decoder.head_width**-0.5, window_of(decoder, layer)
        self.softcap = decoder.attention_softcap
        setattr(self, GROUPS, decoder.heads // decoder.kv_heads)
        queries, keys = decoder.heads * decoder.head_width, decoder.kv_heads * decoder.head_width
        self.query = nn.Linear(decoder.width, queries, bias=decoder.qkv_bias)
        self.key = nn.Linear(decoder.width, keys, bias=decoder.qkv_bias)
        self.value = nn.Linear(decoder.width, keys, bias=decoder.qkv_bias)
        self.out = nn.Linear(queries, decoder.width, bias=decoder.out_bias)
        self.norms_heads = not decoder.qk_norm_across_heads
        widths = (decoder.head_width, decoder.head_width) if self.norms_heads else (queries, keys)
        self.q_norm, self.k_norm = (norm_of(decoder, width, decoder.qk_norm) for width in widths)

    def forward(self, x_BTD, angles, mask, cache, **kwargs):
        q, k, v = self.query(x_BTD), self.key(x_BTD), self.value(x_BTD)
        if not self.norms_heads:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.unflatten(-1, (-1, self.head_width)) for y in (q, k, v))
        if self.norms_heads:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotates:
            q, k = rotate(q, angles), rotate(k, angles)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        if self.softcap is not None:
            kwargs |= {"softcap": self.softcap}
        implementation = self.config._attn_implementation
        if self.softcap is not None and implementation in (None, "eager", "sdpa"):  # neither caps scores
            attend = attend_capped
        else:
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, sdpa_attention_forward)
        y, _ = attend(self, q, k, v, mask, scaling=self.scaling, sliding_window=self.sliding_window, **kwargs)
        return self.out(y.reshape(*x_BTD.shape[:-1], -1))


def attend_capped(module, q, k, v, mask, *, scaling, softcap, **kwargs):
    """Attention with soft-capped scores, under a mask of `transformers`; without one it is causal."""
    queries, keys = q.shape[2], k.shape[2]
    if mask is None:
        mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    seen = mask if mask.dtype == torch.bool else mask == 0
    q = q * (scaling * q.shape[-1] ** 0.5)  # which the function below divides by
    return capped_attention(q, k, v_BKLW=v, seen_B1TL=seen, cap=softcap).transpose(1, 2), None


class Router(nn.Module):
    """The weights of each token's top k experts, and which those are, [A, top k]."""

    def __init__(self, config):
        super().__init__()
        self.top_k, self.normalizes = config.sparse["top_k"], config.sparse["normalize"]
        self.weight = nn.Parameter(torch.zeros(config.sparse["experts"], config.width))

    def forward(self, x_AD):
        scores = F.linear(x_AD.float(), self.weight.float()).softmax(-1)
        weights, experts = scores.topk(self.top_k)
        if self.normalizes:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights.to(x_AD.dtype), experts


class Expert(nn.Module):
    def __init__(self, width, mlp_width):
        super().__init__()
        self.gate_proj = nn.Linear(width, mlp_width, bias=False)
        self.up_proj = nn.Linear(width, mlp_width, bias=False)
        self.down_proj = nn.Linear(mlp_width, width, bias=False)

    def forward(self, x_AD):
        return self.down_proj(F.silu(self.gate_proj(x_AD)) * self.up_proj(x_AD))


class Experts(nn.ModuleList):
    """The weighted sum of what its experts make of each token; vLLM puts its own in this place."""

    def forward(self, x_AD, experts, weights):
        y_AD = torch.zeros_like(x_AD)
        for expert in experts.unique().tolist():
            token, rank = (experts == expert).nonzero(as_tuple=True)
            y_AD.index_add_(0, token, self[expert](x_AD[token]) * weights[token, rank, None])
        return y_AD


class SparseFeedForward(nn.Module):
    """Each token goes through the top k experts of a router."""

    def __init__(self, config):
        super().__init__()
        self.router = Router(config)
        self.experts = Experts(Expert(config.width, config.mlp_width) for _ in range(config.sparse["experts"]))

    def forward(self, x_BTD):
        x_AD = x_BTD.reshape(-1, x_BTD.shape[-1])
        weights, experts = self.router(x_AD)
        return self.experts(x_AD, experts, weights).reshape(x_BTD.shape)


class DecoderBlock(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        decoder = decoder_of(config)
        sparse = decoder.sparse["experts"] and (layer + 1) % decoder.sparse["every"] == 0
        self.attention_norm = norm_of(decoder, decoder.width, decoder.norm_before)
        self.attention = SelfAttention(config, layer)
        self.attention_out_norm = norm_of(decoder, decoder.width, decoder.norm_after)
        self.feed_forward_norm = norm_of(decoder, decoder.width, decoder.norm_before)
        self.feed_forward_out_norm = norm_of(decoder, decoder.width, decoder.norm_after)
        dense = (decoder.width, decoder.mlp_width, decoder.mlp_bias, decoder.activation)
        self.feed_forward = SparseFeedForward(decoder) if sparse else FeedForward(*dense)

    def forward(self, x_BTD, angles, mask, cache, **kwargs):
        y_BTD = self.attention(self.attention_norm(x_BTD), angles, mask, cache, **kwargs)
        x_BTD = x_BTD + self.attention_out_norm(y_BTD)
        return x_BTD + self.feed_forward_out_norm(self.feed_forward(self.feed_forward_norm(x_BTD)))


class MM1PreTrainedModel(PreTrainedModel):
    base_model_prefix = "model"
    _no_split_modules = ["DecoderBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True


class Embedding(nn.Embedding):
    """Embeddings of tokens, scaled as the decoder takes them."""

    def __init__(self, decoder):
        super().__init__(decoder.vocabulary, decoder.width)
        self.scale = decoder.embedding_scale

    def forward(self, ids):
        x = super().forward(ids)
        return x if self.scale == 1 else x * torch.tensor(self.scale, dtype=x.dtype)


class MM1TextModel(MM1PreTrainedModel):
    """The decoder, up to its last norm."""

    config_class = MM1TextConfig

    def __init__(self, config):
        super().__init__(config)
        decoder = decoder_of(config)
        self.embedding = Embedding(decoder)
        self.blocks = nn.ModuleList(DecoderBlock(config, layer) for layer in range(decoder.layers))
        self.norm = norm_of(decoder, decoder.width)
        self.post_init()

    def get_input_embeddings(self):
        return self.embedding

    def set_input_embeddings(self, embedding):
        self.embedding = embedding

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        **kwargs,
    ):
        x_BTD = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        if position_ids is None:
            first, length = 0 if past_key_values is None else past_key_values.get_seq_length(), x_BTD.shape[1]
            if attention_mask is None:
                position_ids = torch.arange(first, first + length, device=x_BTD.device)[None]
            else:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        masked = {
            "config": self.config,
            "inputs_embeds": x_BTD,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "position_ids": position_ids,
        }
        decoder, masks, angles = decoder_of(self.config), {}, {}
        for layer, block in enumerate(self.blocks):
            window = window_of(decoder, layer)
            if window not in masks:
                create = create_causal_mask if window is None else create_sliding_window_causal_mask
                masks[window], angles[window] = create(**masked), rotary_angles(position_ids, decoder, window)
            x_BTD = block(x_BTD, angles[window], masks[window], past_key_values, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x_BTD), past_key_values=past_key_values)


class MM1Model(MM1PreTrainedModel):
    """Encoder, connector and decoder."""

    config_class = MM1Config

    def __init__(self, config):
        super().__init__(config)
        vision = config.part("vision")
        width = config.mm1["model"]["decoder"]["width"]
        self.vision = Vision(vision)
        self.connector = Connector(config.part("connector"), vision, width, config.row_ends)
        self.language_model = MM1TextModel(config.text_config)
        self.post_init()

    def get_input_embeddings(self):
        return self.language_model.embedding

    def set_input_embeddings(self, embedding):
        self.language_model.embedding = embedding

    def get_image_features(self, pixel_values, feature_index=None, **kwargs):
        """The features of all images, [N, S, D]; with `feature_index` a list, those of each picture in its order."""
        features = self.connector(self.vision(pixel_values))
        if feature_index is not None:
            flat, first, parts = features.flatten(0, 1), 0, []
            for index in feature_index:
                tiles = int(index[0])  # how many tiles the picture has; the others number their features
                parts.append(flat[first + index[1:]])
                first += tiles * features.shape[1]
            features = parts
        return BaseModelOutputWithPooling(pooler_output=features)

    def forward(self, input_ids=None, pixel_values=None, feature_BT=None, inputs_embeds=None, **kwargs):
        x_BTD = self.language_model.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        image_BT = None if input_ids is None else input_ids == self.config.image_token_id
        if pixel_values is not None and image_BT is not None and image_BT.any():
            features = self.get_image_features(pixel_values).pooler_output.flatten(0, 1).to(x_BTD.dtype)
            if feature_BT is not None:  # the number of each image token's feature; without it they are in order
                features = features[feature_BT[image_BT[:, : feature_BT.shape[1]]]]
            if len(features) != image_BT.sum():
                raise ValueError(f"{int(image_BT.sum())} image tokens in the text, but {len(features)} from the images")
            x_BTD = x_BTD.masked_scatter(image_BT[..., None], features)
        return self.language_model(inputs_embeds=x_BTD, **kwargs)


class MM1ForCausalLM(MM1PreTrainedModel, GenerationMixin):
    """A decoder with its output matrix."""

    config_class = MM1TextConfig
    inner = MM1TextModel
    _tied_weights_keys = {"lm_head.weight": "model.embedding.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = self.inner(config)
        decoder = decoder_of(config.get_text_config())
        self.softcap = decoder.logit_softcap
        self.lm_head = nn.Linear(decoder.width, decoder.vocabulary, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, embedding):
        self.model.set_input_embeddings(embedding)

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, matrix):
        self.lm_head = matrix

    def forward(self, input_ids=None, *, labels=None, logits_to_keep=0, **kwargs):
        outputs = self.model(input_ids=input_ids, **kwargs)
        positions = logits_to_keep if torch.is_tensor(logits_to_keep) else slice(-logits_to_keep, None)  # -0: all
        logits_BTV = soft_cap(self.lm_head(outputs.last_hidden_state[:, positions]), self.softcap)
        vocabulary = logits_BTV.shape[-1]
        loss = None if labels is None else self.loss_function(logits_BTV, labels, vocabulary)
        return CausalLMOutputWithPast(loss=loss, logits=logits_BTV, past_key_values=outputs.past_key_values)


class MM1ForConditionalGeneration(MM1ForCausalLM):
    """The whole model: with images it says what follows them and the text."""

    config_class = MM1Config
    inner = MM1Model
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embedding.weight"}

    def get_image_features(self, pixel_values, **kwargs):
        return self.model.get_image_features(pixel_values, **kwargs)

    def forward(self, input_ids=None, pixel_values=None, *, feature_BT=None, **kwargs):
        return super().forward(input_ids, pixel_values=pixel_values, feature_BT=feature_BT, **kwargs)

    def _expand_inputs_for_generation(self, expand_size=1, pixel_values=None, **inputs):
        expanded = super()._expand_inputs_for_generation(expand_size, **inputs)
        if inputs.get("feature_BT") is not None:  # copies of a sequence take the same features
            expanded[1]["pixel_values"] = pixel_values
        elif pixel_values is not None:  # each copy of a sequence gets all images of the sequence
            tokens_B = (inputs["input_ids"] == self.config.image_token_id).sum(1)
            images_B = pixel_values.split((tokens_B * len(pixel_values) // tokens_B.sum()).tolist())
            expanded[1]["pixel_values"] = torch.cat([x for x in images_B for _ in range(expand_size)])
        return expanded

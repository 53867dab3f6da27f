"""Configs of decoders, as in their config.json, to ours and back: pure functions."""

from typing import Any

from mm1.config.model import DecoderConfig, RopeScalingConfig, SparseConfig
from mm1.hf.decoders import FAMILIES, Family, family_of
from mm1.hf.rope import rope_of, rope_scaling_from_hf, rope_scaling_to_hf, window_rope_base

_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}


def decoder_config_from_hf(theirs: dict[str, Any]) -> DecoderConfig:
    """Our config for a decoder of one of `FAMILIES`, alone or inside a larger model's config.

    Raises:
        ValueError: another family, or a part that our decoder doesn't have.
    """
    theirs = theirs.get("text_config", theirs)
    kind = theirs.get("model_type", "")
    if kind not in FAMILIES:
        raise ValueError(f"decoders of type {kind!r} can't be read; known: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    theirs = family.defaults | theirs
    rope, heads, biased = rope_of(theirs), theirs["num_attention_heads"], bool(theirs.get("attention_bias"))
    _refuse(theirs | rope, family)
    scaling, max_positions = rope_scaling_from_hf(rope), theirs["max_position_embeddings"]
    ours: dict[str, Any] = {
        "vocabulary": theirs["vocab_size"],
        "width": theirs["hidden_size"],
        "layers": theirs["num_hidden_layers"],
        "heads": heads,
        "kv_heads": theirs.get("num_key_value_heads") or heads,
        "head_width": theirs.get("head_dim") or theirs["hidden_size"] // heads,
        "mlp_width": theirs.get("moe_intermediate_size") or theirs["intermediate_size"],
        "rope_base": rope.get("rope_theta", 10_000.0),
        "rope_scaling": scaling,
        "rotary_share": rope.get("partial_rotary_factor", 1.0),
        "norm_epsilon": theirs["rms_norm_eps"],
        "qkv_bias": biased,
        "out_bias": biased,
        "mlp_bias": bool(theirs.get("mlp_bias")),
        "tie_embeddings": theirs.get("tie_word_embeddings", False),
        "max_positions": min(max_positions, _longest(scaling) or max_positions),
        "no_rope_layers": _no_rope_layers(theirs),
        "attention_softcap": theirs.get("attn_logit_softcapping"),
        "logit_softcap": theirs.get("final_logit_softcapping"),
        "sparse": _sparse(theirs),
    }
    return DecoderConfig(**ours | _scales(theirs) | _windows(theirs) | family.fields)


def _longest(scaling: RopeScalingConfig | None) -> int | None:
    """The longest text for which ours computes what theirs does; None for any."""
    return scaling.original_positions if scaling is not None and scaling.kind == "longrope" else None


def _scales(theirs: dict[str, Any]) -> dict[str, Any]:
    """How a Gemma scales queries and embeddings."""
    if "query_pre_attn_scalar" not in theirs:
        return {}
    return {
        "query_scale": theirs["query_pre_attn_scalar"] ** -0.5,
        "embedding_scale": theirs["hidden_size"] ** 0.5,
    }


def _windows(theirs: dict[str, Any]) -> dict[str, Any]:
    """The window of their layers, and what these layers have of their own; nothing if no text is longer.

    Where layers with a window have another rotary base, as in Gemma 3, it matters for short texts too.
    """
    window = theirs.get("sliding_window") if theirs.get("use_sliding_window", True) else None
    base = window_rope_base(theirs)
    if window is None or (base is None and window >= theirs["max_position_embeddings"]):
        return {}
    return {"window": window, "full_layers": _full_layers(theirs), "window_rope_base": base}


def _full_layers(theirs: dict[str, Any]) -> tuple[int, ...]:
    """The layers without a window, counted from 0."""
    count = theirs["num_hidden_layers"]
    if types := theirs.get("layer_types"):
        return tuple(layer for layer in range(count) if types[layer] == "full_attention")
    if pattern := theirs.get("sliding_window_pattern"):
        return tuple(layer for layer in range(count) if not (layer + 1) % pattern)
    return tuple(range(min(theirs.get("max_window_layers", 0), count)))


def _no_rope_layers(theirs: dict[str, Any]) -> tuple[int, ...]:
    if "no_rope_layer_interval" not in theirs:
        return ()
    layers, interval = theirs["num_hidden_layers"], theirs["no_rope_layer_interval"]
    rotated = theirs.get("no_rope_layers") or [(layer + 1) % interval for layer in range(layers)]
    return tuple(layer for layer in range(layers) if not rotated[layer])  # in their "no rope" list 1 means rope


def _sparse(theirs: dict[str, Any]) -> SparseConfig:
    if "num_experts_per_tok" not in theirs:
        return SparseConfig()
    return SparseConfig(
        experts=theirs.get("num_experts") or theirs["num_local_experts"],  # the first in published files of both others
        top_k=theirs["num_experts_per_tok"],
        load_balance_weight=theirs.get("router_aux_loss_coef", 0.0),
        normalize=theirs.get("norm_topk_prob", True),
    )


def _refuse(theirs: dict[str, Any], family: Family) -> None:
    """Raise if their decoder computes something else than ours."""
    if theirs.get("attention_bias") and not any("out_bias" in group for group in family.may):
        raise ValueError(f"attention_bias is set, which is not known of {theirs['model_type']}")
    if theirs.get("clip_qkv") is not None:
        raise ValueError("clip_qkv is set, but our decoder clips no queries, keys and values")
    activation, known = theirs.get("hidden_activation") or theirs["hidden_act"], family.defaults["hidden_act"]
    if activation != known:
        raise ValueError(f"its activation is {activation!r}, but only {known!r} is known")
    parts = ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention")
    is_set = {name: bool(theirs.get(name)) for name in parts}
    is_set["partial_rotary_factor"] = theirs.get("partial_rotary_factor") not in (None, 1.0)
    for name, value in is_set.items():
        if value and name not in family.defaults:
            raise ValueError(f"{name} is set, which is not known of {theirs['model_type']}")
    if theirs.get("decoder_sparse_step", 1) != 1 or theirs.get("mlp_only_layers"):
        raise ValueError("decoder_sparse_step or mlp_only_layers leave layers without experts, of another width")


def decoder_config_to_hf(config: DecoderConfig, *, max_positions: int) -> dict[str, Any]:
    """A config of the family that has the parts of `config`; `max_positions` is the length that it was trained for.

    A Mistral decoder without a window and a Phi-3 become a Llama, which computes the same.

    Raises:
        ValueError: no family has all of these parts.
    """
    kind = family_of(config)
    rope = rope_scaling_to_hf(config.rope_scaling) | {"rope_theta": config.rope_base}
    # versions of transformers before 5 read rope_theta and rope_scaling, later ones rope_parameters
    earlier = {"rope_theta": config.rope_base, "rope_scaling": None if config.rope_scaling is None else rope}
    return {
        "model_type": kind,
        "architectures": [FAMILIES[kind].architecture],
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "hidden_act": _ACTIVATIONS[config.activation],
        "max_position_embeddings": max_positions,
        "rms_norm_eps": config.norm_epsilon,
        "rope_parameters": rope,
        **earlier,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": config.out_bias,
    } | _own_settings(config, kind)


def _own_settings(config: DecoderConfig, kind: str) -> dict[str, Any]:
    """The fields of a config.json that only this family has."""
    sparse = config.sparse
    experts = {"num_experts_per_tok": sparse.top_k, "router_aux_loss_coef": sparse.load_balance_weight}
    more = {"num_experts": sparse.experts, "norm_topk_prob": sparse.normalize}
    rotated = [int(layer not in config.no_rope_layers) for layer in range(config.layers)]
    settings: dict[str, dict[str, Any]] = {
        "llama": {"mlp_bias": config.mlp_bias},
        # its default pad token is outside of small vocabularies
        "smollm3": {"no_rope_layers": rotated, "pad_token_id": None},
        "mixtral": {"num_local_experts": sparse.experts, "sliding_window": config.window} | experts,
        "qwen3_moe": experts | more | {"num_local_experts": sparse.experts, "moe_intermediate_size": config.mlp_width},
        "olmoe": experts | more,
        "mistral": {"sliding_window": config.window},
        "qwen2": _windows_to_hf(config),
        "qwen3": _windows_to_hf(config),
    }
    gemmas = {"gemma2": _gemma2_to_hf, "gemma3_text": _gemma3_to_hf}
    return gemmas[kind](config) if kind in gemmas else settings.get(kind, {})


def _windows_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The fields of layers with a window, and of others."""
    if config.window is None:
        return {"use_sliding_window": False}
    full = len(config.full_layers)
    fields: dict[str, Any] = {"use_sliding_window": True, "sliding_window": config.window, "max_window_layers": full}
    return fields | {"layer_types": _layer_types(config)}


def _layer_types(config: DecoderConfig) -> list[str]:
    return ["full_attention" if config.window_of(n) is None else "sliding_attention" for n in range(config.layers)]


def _gemma_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The fields that only Gemmas have.

    Raises:
        ValueError: its embeddings are scaled otherwise.
    """
    if config.embedding_scale != config.width**0.5 or config.query_scale is None:
        raise ValueError("Gemma multiplies embeddings by the root of their width, unlike this decoder")
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round(config.query_scale**-2),
        "layer_types": _layer_types(config),
        "sliding_window": config.window or 4096,
    }


def _gemma2_to_hf(config: DecoderConfig) -> dict[str, Any]:
    softcaps = {
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
    }
    return _gemma_to_hf(config) | softcaps


def _gemma3_to_hf(config: DecoderConfig) -> dict[str, Any]:
    full = rope_scaling_to_hf(config.rope_scaling) | {"rope_theta": config.rope_base}
    near = {"rope_type": "default", "rope_theta": config.window_rope_base or 10_000.0}
    return _gemma_to_hf(config) | {
        "rope_parameters": {"full_attention": full, "sliding_attention": near},
        "rope_local_base_freq": near["rope_theta"],
    }

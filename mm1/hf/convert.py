"""Decoders of `transformers` to ours and back: pure functions over configs (as in config.json) and state dicts.

Our state dicts are those of a `Decoder`. Nothing is computed, so a round trip gives the same tensors, bit for bit.
"""

from typing import Any

import torch

from mm1.config.model import DecoderConfig, RopeScalingConfig, SparseConfig
from mm1.hf.experts import stack_experts, unstack_experts
from mm1.hf.names import AFTER, DECODER, DECODER_DROPPED, QWEN3_MOE, reverse, translate
from mm1.hf.rope import rope_of, rope_scaling_from_hf, rope_scaling_to_hf, window_rope_base

State = dict[str, torch.Tensor]

DECODERS = {
    "gemma3_text": "Gemma3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
"""Classes by model type. SmolLM2 is a Llama, Qwen2.5 a Qwen2, Phi-4-mini a Phi-3."""

_LLAMA: dict[str, Any] = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
_LLAMA |= {"num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6}
_MISTRAL = _LLAMA | {"num_key_value_heads": 8, "intermediate_size": 14336, "max_position_embeddings": 131072}
_QWEN = _LLAMA | {"vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768}
_QWEN |= {"num_key_value_heads": 32, "use_sliding_window": False}
_SMOLLM3: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
}
_SMOLLM3 |= {"num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 32768}
_SMOLLM3 |= {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 2e6}

_QWEN3_MOE = _LLAMA | {"vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 24, "num_key_value_heads": 4}
_QWEN3_MOE |= {"max_position_embeddings": 32768, "use_sliding_window": False, "num_local_experts": 128}
_QWEN3_MOE |= {"moe_intermediate_size": 768, "num_experts_per_tok": 8, "norm_topk_prob": False}

_OLMOE = _LLAMA | {"vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 2048, "num_hidden_layers": 16}
_OLMOE |= {"num_attention_heads": 16, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "num_experts": 64}
_OLMOE |= {"num_experts_per_tok": 8, "norm_topk_prob": False}

_GEMMA3: dict[str, Any] = {"vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "head_dim": 256}
_GEMMA3 |= {"num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "rms_norm_eps": 1e-6}
_GEMMA3 |= {"max_position_embeddings": 131072, "hidden_act": "gelu_pytorch_tanh", "sliding_window": 4096}
_GEMMA3 |= {"query_pre_attn_scalar": 256, "tie_word_embeddings": True}

_PHI3 = _LLAMA | {"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "rms_norm_eps": 1e-5}
_PHI3 |= {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096}

_OLMO = ("olmo2", "olmoe")
_NAMES = {"qwen3_moe": QWEN3_MOE, "olmoe": QWEN3_MOE, "olmo2": AFTER, "gemma3_text": AFTER}
_MARKS = {".mlp.experts.": QWEN3_MOE, ".post_feedforward_layernorm.": AFTER}
"""Tables of names by what only their files have in a name."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _MISTRAL | {"sliding_window": 4096},
    "mixtral": _MISTRAL | {"rope_theta": 1e6, "rms_norm_eps": 1e-5, "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128},
    "qwen3_moe": _QWEN3_MOE,
    "smollm3": _SMOLLM3,
    "olmo2": _LLAMA | {"vocab_size": 50304, "rms_norm_eps": 1e-5},
    "olmoe": _OLMOE,
    "gemma3_text": _GEMMA3,
    "phi3": _PHI3,
}
"""Defaults of their config classes: a config, above all one inside a larger model's, may leave fields out."""


def decoder_config_from_hf(theirs: dict[str, Any]) -> DecoderConfig:
    """Our config for a decoder of one of the families above, alone or inside a larger model's config.

    Raises:
        ValueError: another family, or a part that our decoder doesn't have.
    """
    theirs = theirs.get("text_config", theirs)
    family = theirs.get("model_type", "")
    theirs = _DEFAULTS.get(family, {}) | theirs
    _refuse(theirs, family)
    rope, heads, window = rope_of(theirs), theirs["num_attention_heads"], _window(theirs, family)
    scaling, max_positions = rope_scaling_from_hf(rope), theirs["max_position_embeddings"]
    return DecoderConfig(
        vocabulary=theirs["vocab_size"],
        width=theirs["hidden_size"],
        layers=theirs["num_hidden_layers"],
        heads=heads,
        kv_heads=theirs.get("num_key_value_heads") or heads,
        head_width=theirs.get("head_dim") or theirs["hidden_size"] // heads,
        mlp_width=theirs["moe_intermediate_size" if family == "qwen3_moe" else "intermediate_size"],
        rope_base=rope.get("rope_theta", _BASES.get(family, 10_000.0)),
        rope_scaling=scaling,
        rotary_share=rope.get("partial_rotary_factor", 1.0),
        window=window,
        full_layers=_full_layers(theirs, family) if window else (),
        window_rope_base=(window_rope_base(theirs) or 10_000.0) if window and family == "gemma3_text" else None,
        norm_epsilon=theirs["rms_norm_eps"],
        qk_norm=family in ("qwen3", "qwen3_moe", "gemma3_text", *_OLMO),
        qk_norm_across_heads=family in _OLMO,
        norm_before=family != "olmo2",
        norm_after=family in ("olmo2", "gemma3_text"),
        qkv_bias=family == "qwen2" or bool(theirs.get("attention_bias")),
        out_bias=bool(theirs.get("attention_bias")),
        mlp_bias=bool(theirs.get("mlp_bias")),
        no_rope_layers=_no_rope_layers(theirs) if family == "smollm3" else (),
        tie_embeddings=theirs.get("tie_word_embeddings", family == "smollm3"),
        max_positions=min(max_positions, _longest(scaling) or max_positions),
        **(_gemma(theirs) if family == "gemma3_text" else {}),
        sparse=_sparse(theirs) if family in ("mixtral", "qwen3_moe", "olmoe") else SparseConfig(),
    )


_BASES = {"gemma3_text": 1e6}


def _longest(scaling: RopeScalingConfig | None) -> int | None:
    """The longest text for which ours computes what theirs does; None for any."""
    return scaling.original_positions if scaling is not None and scaling.kind == "longrope" else None


def _gemma(theirs: dict[str, Any]) -> dict[str, Any]:
    return {
        "norm_offset": True,
        "activation": "gelu_tanh",
        "query_scale": theirs["query_pre_attn_scalar"] ** -0.5,
        "embedding_scale": theirs["hidden_size"] ** 0.5,
    }


def _window(theirs: dict[str, Any], family: str) -> int | None:
    """The window of their layers; None if no text is longer, unless these layers have other rotary positions."""
    window = theirs.get("sliding_window") if theirs.get("use_sliding_window", True) else None
    matters = window is not None and (family == "gemma3_text" or window < theirs["max_position_embeddings"])
    return window if matters else None


def _full_layers(theirs: dict[str, Any], family: str) -> tuple[int, ...]:
    """The layers without a window, counted from 0."""
    count = theirs["num_hidden_layers"]
    if types := theirs.get("layer_types"):
        return tuple(layer for layer in range(count) if types[layer] == "full_attention")
    if family == "gemma3_text":
        pattern = theirs.get("sliding_window_pattern", 6)
        return tuple(layer for layer in range(count) if not (layer + 1) % pattern)
    return tuple(range(min(theirs.get("max_window_layers", 0), count)))


def _no_rope_layers(theirs: dict[str, Any]) -> tuple[int, ...]:
    layers, interval = theirs["num_hidden_layers"], theirs.get("no_rope_layer_interval", 4)
    rotated = theirs.get("no_rope_layers") or [(layer + 1) % interval for layer in range(layers)]
    return tuple(layer for layer in range(layers) if not rotated[layer])  # in their "no rope" list 1 means rope


def _sparse(theirs: dict[str, Any]) -> SparseConfig:
    return SparseConfig(
        experts=theirs.get("num_experts") or theirs["num_local_experts"],  # the first in published files of both others
        top_k=theirs["num_experts_per_tok"],
        load_balance_weight=theirs.get("router_aux_loss_coef", 0.0),
        normalize=theirs.get("norm_topk_prob", True),
    )


def _refuse(theirs: dict[str, Any], family: str) -> None:
    """Raise if their decoder computes something else than ours."""
    if family not in DECODERS:
        raise ValueError(f"decoders of type {family!r} can't be read; known: {', '.join(DECODERS)}")
    if theirs.get("attention_bias") and family not in ("llama", "qwen3", "olmo2"):
        raise ValueError(f"attention_bias is set, which is not known of {family}")
    if theirs.get("clip_qkv") is not None:
        raise ValueError("clip_qkv is set, but our decoder clips no queries, keys and values")
    activation = theirs.get("hidden_activation") or theirs["hidden_act"]
    if activation != _DEFAULTS[family]["hidden_act"]:
        raise ValueError(f"its activation is {activation!r}, but only {_DEFAULTS[family]['hidden_act']!r} is known")
    for name in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
        if theirs.get(name):
            raise ValueError(f"{name} is set, which our decoder doesn't have")
    if theirs.get("decoder_sparse_step", 1) != 1 or theirs.get("mlp_only_layers"):
        raise ValueError("decoder_sparse_step or mlp_only_layers leave layers without experts, of another width")


def decoder_config_to_hf(config: DecoderConfig, *, max_positions: int) -> dict[str, Any]:
    """A config of the family that has the parts of `config`; `max_positions` is the length that it was trained for.

    A Mistral decoder without a window and a Phi-3 become a Llama, which computes the same.

    Raises:
        ValueError: no family has all of these parts.
    """
    family, extra = _family(config)
    rope = rope_scaling_to_hf(config.rope_scaling) | {"rope_theta": config.rope_base}
    # versions of transformers before 5 read rope_theta and rope_scaling, later ones rope_parameters
    earlier = {"rope_theta": config.rope_base, "rope_scaling": None if config.rope_scaling is None else rope}
    return {
        "model_type": family,
        "architectures": [DECODERS[family]],
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "hidden_act": {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}[config.activation],
        "max_position_embeddings": max_positions,
        "rms_norm_eps": config.norm_epsilon,
        "rope_parameters": rope,
        **earlier,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": config.out_bias,
    } | extra


def _family(config: DecoderConfig) -> tuple[str, dict[str, Any]]:
    """The family that has the parts of `config`, and the settings that only this family has."""
    sparse, last = config.sparse, config.layers - 1
    has_experts = any(sparse.at(layer) for layer in range(config.layers))
    if has_experts and (sparse.capacity is not None or not all(sparse.at(layer) for layer in (0, last))):
        raise ValueError("families with experts have them in every layer and no capacity, unlike this decoder")
    parts = {
        "qkv_bias": config.qkv_bias,
        "out_bias": config.out_bias,
        "mlp_bias": config.mlp_bias,
        "qk_norm": config.qk_norm,
        "qk_norm_across_heads": config.qk_norm_across_heads,
        "norm_after": config.norm_after,
        "no norm_before": not config.norm_before,
        "window": config.window is not None,
        "full_layers": bool(config.full_layers),
        "window_rope_base": config.window_rope_base is not None,
        "norm_offset": config.norm_offset,
        "gelu_tanh": config.activation == "gelu_tanh",
        "query_scale": config.query_scale is not None,
        "embedding_scale": config.embedding_scale != 1,
        "rotary_share": config.rotary_share != 1,
        "no_rope_layers": bool(config.no_rope_layers),
        "experts": has_experts,
        "weights of experts as the router gives them": has_experts and not sparse.normalize,
    }
    present = [name for name, there in parts.items() if there]
    family = next((family for family, choices in _PARTS.items() if set(present) in choices), None)
    if family is None:
        raise ValueError(f"no family of transformers has all of these: {', '.join(present)}")
    return family, _own_settings(config, family)


def _own_settings(config: DecoderConfig, family: str) -> dict[str, Any]:
    """The fields of a config.json that only this family has."""
    sparse = config.sparse
    experts = {"num_experts_per_tok": sparse.top_k, "router_aux_loss_coef": sparse.load_balance_weight}
    more = {"num_experts": sparse.experts, "norm_topk_prob": sparse.normalize}
    rotated = [int(layer not in config.no_rope_layers) for layer in range(config.layers)]
    settings: dict[str, dict[str, Any]] = {
        "llama": {"mlp_bias": config.mlp_bias},
        # its default pad token is outside of small vocabularies
        "smollm3": {"no_rope_layers": rotated, "pad_token_id": None},
        "mixtral": {"num_local_experts": sparse.experts} | experts,
        "qwen3_moe": experts | more | {"num_local_experts": sparse.experts, "moe_intermediate_size": config.mlp_width},
        "olmoe": experts | more,
        "mistral": {"sliding_window": config.window},
        "qwen2": _windows_to_hf(config),
        "qwen3": _windows_to_hf(config),
    }
    return _gemma_to_hf(config) if family == "gemma3_text" else settings.get(family, {})


def _windows_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The fields of layers with a window, and of others."""
    if config.window is None:
        return {"use_sliding_window": False}
    kinds = ["full_attention" if config.window_of(n) is None else "sliding_attention" for n in range(config.layers)]
    full = len(config.full_layers)
    return {"use_sliding_window": True, "sliding_window": config.window, "max_window_layers": full} | {
        "layer_types": kinds
    }


def _gemma_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The fields that only Gemma 3 has.

    Raises:
        ValueError: its embeddings are scaled otherwise.
    """
    if config.embedding_scale != config.width**0.5 or config.query_scale is None:
        raise ValueError("Gemma multiplies embeddings by the root of their width, unlike this decoder")
    kinds = _windows_to_hf(config) if config.window else {"layer_types": ["full_attention"] * config.layers}
    full = rope_scaling_to_hf(config.rope_scaling) | {"rope_theta": config.rope_base}
    near = {"rope_type": "default", "rope_theta": config.window_rope_base or 10_000.0}
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round(config.query_scale**-2),
        "layer_types": kinds["layer_types"],
        "sliding_window": config.window or 4096,
        "rope_parameters": {"full_attention": full, "sliding_attention": near},
        "rope_local_base_freq": near["rope_theta"],
    }


_BIASED = {"qkv_bias", "out_bias"}
_ACROSS = {"qk_norm", "qk_norm_across_heads"}
_RAW = "weights of experts as the router gives them"
_SOME, _MOVED = {"window", "full_layers"}, {"norm_after", "no norm_before"}
_GEMMA = {"qk_norm", "norm_after", "norm_offset", "gelu_tanh", "query_scale", "embedding_scale"}
_PARTS: dict[str, list[set[str]]] = {
    "llama": [set(), {"mlp_bias"}, _BIASED, _BIASED | {"mlp_bias"}],
    "mistral": [{"window"}],
    "qwen2": [{"qkv_bias"}, {"qkv_bias"} | _SOME, {"qkv_bias", "window"}],
    "qwen3": [{"qk_norm"}, {"qk_norm"} | _BIASED, {"qk_norm"} | _SOME, {"qk_norm", "window"}],
    "gemma3_text": [_GEMMA, _GEMMA | _SOME | {"window_rope_base"}],
    "smollm3": [{"no_rope_layers"}],
    "mixtral": [{"experts"}],
    "qwen3_moe": [{"experts", "qk_norm"}, {"experts", "qk_norm", _RAW}],
    "olmo2": [_ACROSS | _MOVED, _ACROSS | _MOVED | _BIASED],
    "olmoe": [_ACROSS | {"experts"}, _ACROSS | {"experts", _RAW}],
}
"""The sets of parts, beside those that all have, with which a family has a model."""


def with_own_head(config: DecoderConfig, theirs: State) -> DecoderConfig:
    """`config` with embeddings untied if the files hold an output matrix of their own, as `transformers` reads them."""
    heads = [x for name, x in theirs.items() if name.endswith("lm_head.weight")]
    if not config.tie_embeddings or not heads:
        return config
    (embedding,) = (x for name, x in theirs.items() if name.endswith("embed_tokens.weight"))
    is_own = heads[0].shape != embedding.shape or not torch.equal(heads[0], embedding)
    return config.model_copy(update={"tie_embeddings": not is_own})


def decoder_from_hf(theirs: State, *, tie_embeddings: bool) -> State:
    """The state of our `Decoder` from a state dict of theirs, which may hold more than the decoder.

    Raises:
        ValueError: tensors of another model, or no output matrix though embeddings are not tied.
    """
    prefix = _prefix(theirs, "embed_tokens.weight")
    inside = {name: x for name, x in _inside(theirs, prefix).items() if not DECODER_DROPPED.match(name)}
    inside = stack_experts(_unfused(inside))
    names = next((table for mark, table in _MARKS.items() if any(mark in name for name in inside)), DECODER)
    ours = {name: inside[their] for their, name in translate(inside, reverse(names)).items()}
    if tie_embeddings:
        return ours
    if not any(name.endswith("lm_head.weight") for name in theirs):
        raise ValueError(
            "no file holds lm_head.weight, but config.json does not say that embeddings are tied; if they are, add "
            '"tie_word_embeddings": true to it, else download the missing file'
        )
    return ours | {"output.weight": theirs[_prefix(theirs, "lm_head.weight") + "lm_head.weight"]}


def _unfused(theirs: State) -> State:
    """Their state dict with Phi-3's matrices of queries, keys and values, and of gate and up, each on its own."""
    state: State = {}
    for name, x in theirs.items():
        if ".qkv_proj." in name:
            queries = theirs[name.replace(".qkv_proj.", ".o_proj.")].shape[1]
            keys = (len(x) - queries) // 2
            parts = zip("qkv", x.split((queries, keys, keys)), strict=True)
            state |= {name.replace(".qkv_proj.", f".{letter}_proj."): part for letter, part in parts}
        elif ".gate_up_proj." in name:
            parts = zip(("gate", "up"), x.chunk(2), strict=True)
            state |= {name.replace(".gate_up_proj.", f".{part}_proj."): half for part, half in parts}
        else:
            state[name] = x
    return state


def decoder_to_hf(ours: State, config: DecoderConfig) -> State:
    """Their state dict from the state of our `Decoder` of this `config`, or from a part of it; as theirs without
    `lm_head` if embeddings are tied."""
    names = _NAMES.get(_family(config)[0], DECODER)
    ours = dict(ours)
    output = ours.pop("output.weight", None)
    theirs = unstack_experts({"model." + their: ours[name] for name, their in translate(ours, names).items()})
    return theirs if output is None else theirs | {"lm_head.weight": output}


def _prefix(state: State, ending: str) -> str:
    prefixes = [name.removesuffix(ending) for name in state if name.endswith(ending)]
    if len(prefixes) != 1:
        raise ValueError(f"found {len(prefixes)} tensors named ...{ending} among {len(state)}, expected one")
    return prefixes[0]


def _inside(state: State, prefix: str) -> State:
    """The tensors whose names begin with `prefix`, less the prefix; without the output matrix."""
    names = {name: name.removeprefix(prefix) for name in state if name.startswith(prefix)}
    return {short: state[name] for name, short in names.items() if not short.endswith("lm_head.weight")}

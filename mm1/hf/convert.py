"""Decoders of `transformers` to ours and back: pure functions over configs (as in config.json) and state dicts.

Our state dicts are those of a `Decoder`. Nothing is computed, so a round trip gives the same tensors, bit for bit.
"""

import math
from typing import Any

import torch

from mm1.config.model import DecoderConfig, RopeScalingConfig, SparseConfig
from mm1.hf.experts import stack_experts, unstack_experts
from mm1.hf.names import DECODER, DECODER_DROPPED, OLMO2, QWEN3_MOE, reverse, translate

State = dict[str, torch.Tensor]

DECODERS = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
"""Classes by model type. SmolLM2 is a Llama, Qwen2.5 a Qwen2."""

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

_OLMO = ("olmo2", "olmoe")
_NAMES = {"qwen3_moe": QWEN3_MOE, "olmoe": QWEN3_MOE, "olmo2": OLMO2}
_MARKS = {".mlp.experts.": QWEN3_MOE, ".post_feedforward_layernorm.": OLMO2}
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
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    heads = theirs["num_attention_heads"]
    return DecoderConfig(
        vocabulary=theirs["vocab_size"],
        width=theirs["hidden_size"],
        layers=theirs["num_hidden_layers"],
        heads=heads,
        kv_heads=theirs.get("num_key_value_heads") or heads,
        head_width=theirs.get("head_dim") or theirs["hidden_size"] // heads,
        mlp_width=theirs["moe_intermediate_size" if family == "qwen3_moe" else "intermediate_size"],
        rope_base=rope.get("rope_theta") or theirs.get("rope_theta", 10_000.0),
        rope_scaling=rope_scaling_from_hf(rope),
        norm_epsilon=theirs["rms_norm_eps"],
        qk_norm=family in ("qwen3", "qwen3_moe", *_OLMO),
        qk_norm_across_heads=family in _OLMO,
        norm_after=family == "olmo2",
        qkv_bias=family == "qwen2" or bool(theirs.get("attention_bias")),
        out_bias=bool(theirs.get("attention_bias")),
        mlp_bias=bool(theirs.get("mlp_bias")),
        no_rope_layers=_no_rope_layers(theirs) if family == "smollm3" else (),
        tie_embeddings=theirs.get("tie_word_embeddings", family == "smollm3"),
        max_positions=theirs["max_position_embeddings"],
        sparse=_sparse(theirs) if family in ("mixtral", "qwen3_moe", "olmoe") else SparseConfig(),
    )


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
    if theirs["hidden_act"] != "silu":
        raise ValueError(f"hidden_act is {theirs['hidden_act']!r}, but only 'silu' is known")
    if theirs.get("decoder_sparse_step", 1) != 1 or theirs.get("mlp_only_layers"):
        raise ValueError("decoder_sparse_step or mlp_only_layers leave layers without experts, of another width")
    window = theirs.get("sliding_window") if theirs.get("use_sliding_window", True) else None
    if window is not None and window < theirs["max_position_embeddings"]:
        raise ValueError(
            f"its attention has a sliding window of {window} tokens, which our decoder lacks; for texts of at most "
            f"{window} tokens that makes no difference: set sliding_window to null in config.json"
        )


def rope_scaling_from_hf(rope: dict[str, Any]) -> RopeScalingConfig | None:
    """How their rotary positions are stretched, by `rope_parameters` or, before version 5, `rope_scaling`.

    Raises:
        ValueError: in a way that ours doesn't know.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScalingConfig(kind="linear", factor=rope["factor"])
    if kind == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        original = rope["original_max_position_embeddings"]
        return RopeScalingConfig(kind="llama3", factor=rope["factor"], low=low, high=high, original_positions=original)
    if kind != "yarn" or rope.get("mscale"):
        raise ValueError(f"rotary positions of type {kind!r} can't be read; known: default, linear, llama3, yarn")
    factor = rope["factor"]
    default = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0  # Peng et al., arXiv 2309.00071, equation 22
    return RopeScalingConfig(
        kind="yarn",
        factor=factor,
        low=rope.get("beta_slow") or 1.0,
        high=rope.get("beta_fast") or 32.0,
        original_positions=rope["original_max_position_embeddings"],
        attention_factor=rope.get("attention_factor") or default,
        truncate=rope.get("truncate", True),
    )


def _rope_scaling_to_hf(scaling: RopeScalingConfig | None) -> dict[str, Any]:
    """The fields of `rope_parameters` beside the base."""
    if scaling is None:
        return {"rope_type": "default"}
    fields: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        fields |= {"low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
    if scaling.kind == "yarn":
        fields |= {"beta_slow": scaling.low, "beta_fast": scaling.high, "truncate": scaling.truncate}
        fields |= {"attention_factor": scaling.attention_factor}
    return fields | (
        {} if scaling.kind == "linear" else {"original_max_position_embeddings": scaling.original_positions}
    )


def decoder_config_to_hf(config: DecoderConfig, *, max_positions: int) -> dict[str, Any]:
    """A config of the family that has the parts of `config`; `max_positions` is the length that it was trained for.

    A Mistral decoder becomes a Llama, which computes the same.

    Raises:
        ValueError: no family has all of these parts.
    """
    family, extra = _family(config)
    rope = _rope_scaling_to_hf(config.rope_scaling) | {"rope_theta": config.rope_base}
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
        "hidden_act": "silu",
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
    }
    return settings.get(family, {})


_BIASED = {"qkv_bias", "out_bias"}
_ACROSS = {"qk_norm", "qk_norm_across_heads"}
_RAW = "weights of experts as the router gives them"
_PARTS: dict[str, list[set[str]]] = {
    "llama": [set(), {"mlp_bias"}, _BIASED, _BIASED | {"mlp_bias"}],
    "qwen2": [{"qkv_bias"}],
    "qwen3": [{"qk_norm"}, {"qk_norm"} | _BIASED],
    "smollm3": [{"no_rope_layers"}],
    "mixtral": [{"experts"}],
    "qwen3_moe": [{"experts", "qk_norm"}, {"experts", "qk_norm", _RAW}],
    "olmo2": [_ACROSS | {"norm_after"}, _ACROSS | {"norm_after"} | _BIASED],
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
    inside = stack_experts(inside)
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

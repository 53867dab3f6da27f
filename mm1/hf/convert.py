"""Decoders of `transformers` to ours and back: pure functions over configs (as in config.json) and state dicts.

Our state dicts are those of a `Decoder`. Nothing is computed, so a round trip gives the same tensors, bit for bit.
"""

from typing import Any

import torch

from mm1.config.model import DecoderConfig, SparseConfig
from mm1.hf.experts import stack_experts, unstack_experts
from mm1.hf.names import DECODER, DECODER_DROPPED, QWEN3_MOE, reverse, translate

State = dict[str, torch.Tensor]

DECODERS = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
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

_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _MISTRAL | {"sliding_window": 4096},
    "mixtral": _MISTRAL | {"rope_theta": 1e6, "rms_norm_eps": 1e-5, "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128},
    "qwen3_moe": _QWEN3_MOE,
    "smollm3": _SMOLLM3,
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
    kind = rope.get("rope_type", rope.get("type", "default"))
    scaling = None
    if kind == "llama3":
        scaling = (
            rope["factor"],
            rope["low_freq_factor"],
            rope["high_freq_factor"],
            rope["original_max_position_embeddings"],
        )
    elif kind != "default":
        raise ValueError(f"rotary positions of type {kind!r} can't be read; known: default, llama3")
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
        rope_scaling=scaling,
        norm_epsilon=theirs["rms_norm_eps"],
        qk_norm=family in ("qwen3", "qwen3_moe"),
        qkv_bias=family == "qwen2",
        no_rope_layers=_no_rope_layers(theirs) if family == "smollm3" else (),
        tie_embeddings=theirs.get("tie_word_embeddings", family == "smollm3"),
        max_positions=theirs["max_position_embeddings"],
        sparse=_sparse(theirs) if family in ("mixtral", "qwen3_moe") else SparseConfig(),
    )


def _no_rope_layers(theirs: dict[str, Any]) -> tuple[int, ...]:
    layers, interval = theirs["num_hidden_layers"], theirs.get("no_rope_layer_interval", 4)
    rotated = theirs.get("no_rope_layers") or [(layer + 1) % interval for layer in range(layers)]
    return tuple(layer for layer in range(layers) if not rotated[layer])  # in their "no rope" list 1 means rope


def _sparse(theirs: dict[str, Any]) -> SparseConfig:
    return SparseConfig(
        experts=theirs.get("num_experts", theirs["num_local_experts"]),  # Qwen3-MoE's name in published files
        top_k=theirs["num_experts_per_tok"],
        load_balance_weight=theirs.get("router_aux_loss_coef", 0.0),
    )


def _refuse(theirs: dict[str, Any], family: str) -> None:
    """Raise if their decoder computes something else than ours."""
    if family not in DECODERS:
        raise ValueError(f"decoders of type {family!r} can't be read; known: {', '.join(DECODERS)}")
    for name in ("attention_bias", "mlp_bias"):
        if theirs.get(name):
            raise ValueError(f"{name} is set, but only Qwen2's biases of query, key and value can be read")
    if theirs["hidden_act"] != "silu":
        raise ValueError(f"hidden_act is {theirs['hidden_act']!r}, but only 'silu' is known")
    if family == "qwen3_moe":
        _refuse_mixed(theirs)
    window = theirs.get("sliding_window") if theirs.get("use_sliding_window", True) else None
    if window is not None and window < theirs["max_position_embeddings"]:
        raise ValueError(
            f"its attention has a sliding window of {window} tokens, which our decoder lacks; for texts of at most "
            f"{window} tokens that makes no difference: set sliding_window to null in config.json"
        )


def _refuse_mixed(theirs: dict[str, Any]) -> None:
    """Raise if a Qwen3-MoE has dense layers, or weights of experts that don't sum to one."""
    if theirs.get("decoder_sparse_step", 1) != 1 or theirs.get("mlp_only_layers"):
        raise ValueError("decoder_sparse_step or mlp_only_layers leave layers without experts, of another width")
    if not theirs["norm_topk_prob"]:
        raise ValueError("norm_topk_prob is false, but ours divides the weights of the chosen experts by their sum")


def decoder_config_to_hf(config: DecoderConfig, *, max_positions: int) -> dict[str, Any]:
    """A config of the family that has the parts of `config`; `max_positions` is the length that it was trained for.

    A Mistral decoder becomes a Llama, which computes the same.

    Raises:
        ValueError: no family has all of these parts.
    """
    family, extra = _family(config)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_base}
    if config.rope_scaling is not None:
        factor, low, high, original_length = config.rope_scaling
        rope |= {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original_length,
        }
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
        "attention_bias": False,
    } | extra


def _family(config: DecoderConfig) -> tuple[str, dict[str, Any]]:
    """The family that has the parts of `config`, and the settings that only this family has."""
    sparse, last = config.sparse, config.layers - 1
    families: dict[str, dict[str, Any]] = {}
    if config.qkv_bias:
        families["qwen2"] = {}
    if config.qk_norm:
        families["qwen3"] = {}
    if config.no_rope_layers:
        rotated = [int(layer not in config.no_rope_layers) for layer in range(config.layers)]
        # its default pad token is outside of small vocabularies
        families["smollm3"] = {"no_rope_layers": rotated, "pad_token_id": None}
    if any(sparse.at(layer) for layer in range(config.layers)):
        if sparse.capacity is not None or not all(sparse.at(layer) for layer in (0, last)):
            raise ValueError("Mixtral has experts in every layer and no capacity, unlike this decoder")
        families["mixtral"] = {
            "num_local_experts": sparse.experts,
            "num_experts_per_tok": sparse.top_k,
            "router_aux_loss_coef": sparse.load_balance_weight,
        }
        if families.keys() == {"qwen3", "mixtral"}:
            own = {"moe_intermediate_size": config.mlp_width, "norm_topk_prob": True, "num_experts": sparse.experts}
            families = {"qwen3_moe": families["mixtral"] | own}
    if len(families) > 1:
        raise ValueError(
            "Qwen2 has qkv_bias, Qwen3 qk_norm, SmolLM3 no_rope_layers and Mixtral experts, but no family has two of "
            f"these, as {' with '.join(families)} would be"
        )
    return next(iter(families.items()), ("llama", {}))


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
    names = QWEN3_MOE if any(".mlp.experts." in name for name in inside) else DECODER
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
    names = QWEN3_MOE if _family(config)[0] == "qwen3_moe" else DECODER
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

"""The families of decoders in `transformers` that ours can be, one row each."""

from dataclasses import dataclass, field
from typing import Any

from mm1.config.model import DecoderConfig
from mm1.hf.names import AFTER, DECODER, QWEN3_MOE


@dataclass(frozen=True, slots=True)
class Family:
    """A family of decoders.

    `defaults` are those of its config class: a config, above all one inside a larger model's, may leave fields out.
    `fields` are ours that all its models share. They also have the parts `needs`, and all parts of any of the groups
    `may`, where a part is a field of ours that is not at its default. `names` are our names of tensors and theirs.
    """

    architecture: str
    defaults: dict[str, Any]
    fields: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    may: tuple[tuple[str, ...], ...] = ()
    names: dict[str, str] = field(default_factory=lambda: DECODER)


EXPERTS, AS_ROUTED = "experts", "weights of experts as the router gives them"
"""Parts beside fields of a `DecoderConfig`."""

_PARTS = (
    *("qkv_bias", "out_bias", "mlp_bias", "qk_norm", "qk_norm_across_heads", "norm_before", "norm_after"),
    *("norm_offset", "activation", "query_scale", "embedding_scale", "rotary_share", "no_rope_layers"),
    *("window", "full_layers", "window_rope_base", "attention_softcap", "logit_softcap"),
)
_BIASES, _WINDOWS = ("qkv_bias", "out_bias"), (("window", "full_layers"), ("window",))

_LLAMA: dict[str, Any] = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
_LLAMA |= {"num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6}

_MISTRAL = _LLAMA | {"num_key_value_heads": 8, "intermediate_size": 14336, "max_position_embeddings": 131072}

_QWEN = _LLAMA | {"vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768}
_QWEN |= {"num_key_value_heads": 32, "use_sliding_window": False}

_QWEN3_MOE = _LLAMA | {"vocab_size": 151936, "hidden_size": 2048, "num_hidden_layers": 24, "num_key_value_heads": 4}
_QWEN3_MOE |= {"max_position_embeddings": 32768, "use_sliding_window": False, "num_local_experts": 128}
_QWEN3_MOE |= {"moe_intermediate_size": 768, "num_experts_per_tok": 8, "norm_topk_prob": False}

_SMOLLM3 = _LLAMA | {"vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 36, "rope_theta": 2e6}
_SMOLLM3 |= {"num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 32768}
_SMOLLM3 |= {"no_rope_layer_interval": 4, "tie_word_embeddings": True}

_OLMOE = _LLAMA | {"vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 2048, "num_hidden_layers": 16}
_OLMOE |= {"num_attention_heads": 16, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "num_experts": 64}
_OLMOE |= {"num_experts_per_tok": 8, "norm_topk_prob": False}

_GEMMA: dict[str, Any] = {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "head_dim": 256}
_GEMMA |= {"num_attention_heads": 8, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 256}
_GEMMA |= {"hidden_act": "gelu_pytorch_tanh", "sliding_window": 4096, "tie_word_embeddings": True}
_GEMMA2 = _GEMMA | {"vocab_size": 256000, "max_position_embeddings": 8192, "sliding_window_pattern": 2}
_GEMMA2 |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
_GEMMA3 = _GEMMA | {"vocab_size": 262208, "max_position_embeddings": 131072, "sliding_window_pattern": 6}
_GEMMA3 |= {"rope_theta": 1e6, "rope_local_base_freq": 1e4}
_GEMMA_FIELDS = {"norm_after": True, "norm_offset": True, "activation": "gelu_tanh"}
_GEMMA_NEEDS = ("query_scale", "embedding_scale")

_PHI3 = _LLAMA | {"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "rms_norm_eps": 1e-5}
_PHI3 |= {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "partial_rotary_factor": 1.0}

_ACROSS = {"qk_norm": True, "qk_norm_across_heads": True}

FAMILIES = {
    "llama": Family("LlamaForCausalLM", _LLAMA, may=(_BIASES, ("mlp_bias",))),
    "mistral": Family("MistralForCausalLM", _MISTRAL | {"sliding_window": 4096}, needs=("window",)),
    "qwen2": Family("Qwen2ForCausalLM", _QWEN, {"qkv_bias": True}, may=_WINDOWS),
    "qwen3": Family("Qwen3ForCausalLM", _QWEN | {"head_dim": 128}, {"qk_norm": True}, may=(*_WINDOWS, _BIASES)),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        _GEMMA2,
        _GEMMA_FIELDS,
        needs=_GEMMA_NEEDS,
        may=(*_WINDOWS, ("attention_softcap",), ("logit_softcap",)),
        names=AFTER,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        _GEMMA3,
        _GEMMA_FIELDS | {"qk_norm": True},
        needs=_GEMMA_NEEDS,
        may=(("window", "full_layers", "window_rope_base"), ("window", "window_rope_base")),
        names=AFTER,
    ),
    "smollm3": Family("SmolLM3ForCausalLM", _SMOLLM3, needs=("no_rope_layers",)),
    "mixtral": Family(
        "MixtralForCausalLM",
        _MISTRAL | {"rope_theta": 1e6, "rms_norm_eps": 1e-5, "num_local_experts": 8, "num_experts_per_tok": 2},
        needs=(EXPERTS,),
        may=(("window",),),
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        _QWEN3_MOE,
        {"qk_norm": True},
        needs=(EXPERTS,),
        may=((AS_ROUTED,),),
        names=QWEN3_MOE,
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        _LLAMA | {"vocab_size": 50304, "rms_norm_eps": 1e-5},
        _ACROSS | {"norm_before": False, "norm_after": True},
        may=(_BIASES,),
        names=AFTER,
    ),
    "olmoe": Family("OlmoeForCausalLM", _OLMOE, _ACROSS, needs=(EXPERTS,), may=((AS_ROUTED,),), names=QWEN3_MOE),
    "phi3": Family("Phi3ForCausalLM", _PHI3),
}
"""By model type; an export takes the first that fits. SmolLM2 is a Llama, Qwen2.5 a Qwen2, Phi-4-mini a Phi-3."""


def family_of(config: DecoderConfig) -> str:
    """The model type of the family that has the parts of `config`.

    Raises:
        ValueError: no family has all of these parts.
    """
    sparse, default = config.sparse, DecoderConfig()
    has_experts = any(sparse.at(layer) for layer in range(config.layers))
    if has_experts and (sparse.capacity is not None or not all(sparse.at(n) for n in (0, config.layers - 1))):
        raise ValueError("families with experts have them in every layer and no capacity, unlike this decoder")
    parts = [name for name in _PARTS if getattr(config, name) != getattr(default, name)]
    parts += [EXPERTS] * has_experts + [AS_ROUTED] * (has_experts and not sparse.normalize)
    for kind, family in FAMILIES.items():
        shared = all(getattr(config, name) == value for name, value in family.fields.items())
        own = {*parts} - family.fields.keys()
        groups = [group for group in family.may if own.issuperset(group)]
        if shared and own == {*family.needs}.union(*groups) and own.issuperset(family.needs):
            return kind
    raise ValueError(f"no family of transformers has all of these: {', '.join(parts)}")

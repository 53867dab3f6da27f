"""Models that no class of `transformers` has, as `modeling_mm1.py` reads them: config, names of tensors, processor."""

from dataclasses import asdict
from typing import Any

from mm1.config.model import DecoderConfig, ModelConfig
from mm1.data.tiles import tile_spec
from mm1.data.tokenizer import Tokenizer
from mm1.hf.experts import stack_experts, unstack_experts
from mm1.hf.files import Processor, squeezed_images
from mm1.hf.shards import State

TYPES = ("mm1", "mm1_text")
"""The model types of the modelling file: the whole model, and a decoder alone."""

_HEAD = {"decoder.output.": "lm_head."}
_WHOLE = {"vision.": "model.vision.", "connector.": "model.connector.", "decoder.": "model.language_model."}
_PREFIXES = {"model": _HEAD | _WHOLE, "decoder": _HEAD | {"decoder.": "model."}}
"""Prefixes of our tensors and of theirs, by the part that is exported."""

_INSIDE = {f".experts.{name}.weight": f".experts.{name}_proj.weight" for name in ("gate", "up", "down")} | {
    ".attention.query_norm.": ".attention.q_norm.",
    ".attention.key_norm.": ".attention.k_norm.",
}
"""Other parts of names. vLLM makes one matrix of `query`, `key` and `value`, so no other name may begin so."""


def own_config(config: ModelConfig, *, part: str, max_positions: int) -> dict[str, Any]:
    """A config.json for the modelling file; the export adds the model's own config as `mm1`.

    Raises:
        ValueError: a part that the file doesn't have.
    """
    decoder = config.decoder
    if decoder.sparse.capacity is not None:
        raise ValueError(
            f"experts of capacity {decoder.sparse.capacity} drop tokens, which no exported model does; "
            "set model.decoder.sparse.capacity to null in the run's config.json: then none is dropped"
        )
    text = _text_config(decoder, max_positions=max_positions)
    if part == "decoder":
        return text | {
            "architectures": ["MM1ForCausalLM"],
            "auto_map": {
                "AutoConfig": "modeling_mm1.MM1TextConfig",
                "AutoModel": "modeling_mm1.MM1TextModel",
                "AutoModelForCausalLM": "modeling_mm1.MM1ForCausalLM",
            },
        }
    whole = "modeling_mm1.MM1ForConditionalGeneration"
    return {
        "model_type": "mm1",
        "architectures": ["MM1ForConditionalGeneration"],
        "auto_map": {
            "AutoConfig": "modeling_mm1.MM1Config",
            "AutoModel": "modeling_mm1.MM1Model",
            "AutoModelForImageTextToText": whole,
            "AutoModelForCausalLM": whole,
        },
        "text_config": text,
        "tie_word_embeddings": decoder.tie_embeddings,
        "image_token_id": config.image_token_id,
        "row_ends": config.tile_features > config.connector.tokens,
    }


def _text_config(decoder: DecoderConfig, *, max_positions: int) -> dict[str, Any]:
    """What `transformers` and vLLM ask of a decoder's config; the fields of ours are in the record of the export."""
    sparse = decoder.sparse
    theirs: dict[str, Any] = {
        "model_type": "mm1_text",
        "vocab_size": decoder.vocabulary,
        "hidden_size": decoder.width,
        "intermediate_size": decoder.mlp_width,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "head_dim": decoder.head_width,
        "max_position_embeddings": max_positions,
        "tie_word_embeddings": decoder.tie_embeddings,
    }
    if decoder.window is not None:
        windows = [decoder.window_of(layer) for layer in range(decoder.layers)]
        kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
        theirs |= {"sliding_window": decoder.window, "layer_types": kinds}
    softcaps = {"attn_logit_softcapping": decoder.attention_softcap, "final_logit_softcapping": decoder.logit_softcap}
    theirs |= {name: cap for name, cap in softcaps.items() if cap is not None}
    if any(sparse.at(layer) for layer in range(decoder.layers)):
        experts = {"num_experts": sparse.experts, "num_experts_per_tok": sparse.top_k}
        theirs |= experts | {"norm_topk_prob": sparse.normalize, "moe_intermediate_size": decoder.mlp_width}
    return theirs


def own_to_hf(ours: State, *, part: str) -> State:
    """The tensors of a run, or some of them, by the names of the modelling file, each expert on its own."""
    table = _PREFIXES[part] | _INSIDE
    return unstack_experts({_renamed(name, table): x for name, x in ours.items()})


def own_from_hf(theirs: State, *, part: str) -> State:
    """The inverse. Exports of version 0.1 have our names, which stay."""
    table = {their: our for our, their in (_PREFIXES[part] | _INSIDE).items()}
    return {_renamed(name, table): x for name, x in stack_experts(theirs).items()}


def _renamed(name: str, table: dict[str, str]) -> str:
    """The name with the first prefix of the table that it has, and every other part of it, replaced."""
    prefix = next((before for before in table if not before.startswith(".") and name.startswith(before)), "")
    name = table.get(prefix, "") + name.removeprefix(prefix)
    for before, after in table.items():
        if before.startswith("."):
            name = name.replace(before, after)
    return name


def own_processor(config: ModelConfig, tokenizer: Tokenizer) -> Processor:
    """The processor for the modelling file, which makes the pixels and tokens that mm1 makes."""
    text = {
        "auto_map": {"AutoProcessor": "processing_mm1.MM1Processor"},
        "image_token": tokenizer.spelling("image"),
        "tile": asdict(tile_spec(config, use=True)),
    }
    return Processor("MM1Processor", squeezed_images(config.vision), text)

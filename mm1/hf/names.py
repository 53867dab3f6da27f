"""Our parameter names and those of `transformers`, relative to the part; `{}` is a layer's number."""

import re
from collections.abc import Iterable


def _both(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{leaf}": f"{theirs}.{leaf}" for leaf in ("weight", "bias")}


VISION = {
    "class_E": "embeddings.class_embedding",
    "position_PE": "embeddings.position_embedding.weight",
    **_both("patch", "embeddings.patch_embedding"),
    **_both("input_norm", "pre_layrnorm"),  # the typo is theirs
    **_both("norm", "post_layernorm"),
    **_both("blocks.{}.attention_norm", "encoder.layers.{}.layer_norm1"),
    **_both("blocks.{}.attention.query", "encoder.layers.{}.self_attn.q_proj"),
    **_both("blocks.{}.attention.key", "encoder.layers.{}.self_attn.k_proj"),
    **_both("blocks.{}.attention.value", "encoder.layers.{}.self_attn.v_proj"),
    **_both("blocks.{}.attention.out", "encoder.layers.{}.self_attn.out_proj"),
    **_both("blocks.{}.feed_forward_norm", "encoder.layers.{}.layer_norm2"),
    **_both("blocks.{}.feed_forward.up", "encoder.layers.{}.mlp.fc1"),
    **_both("blocks.{}.feed_forward.down", "encoder.layers.{}.mlp.fc2"),
}
"""CLIP's and SigLIP's image encoders."""

VISION_DROPPED = re.compile(r"head\.|embeddings\.position_ids$")
"""What an image encoder of theirs may hold beside that: SigLIP's pooling head, a constant."""

DECODER = {
    "embedding.weight": "embed_tokens.weight",
    "norm.weight": "norm.weight",
    "blocks.{}.attention_norm.weight": "layers.{}.input_layernorm.weight",
    **_both("blocks.{}.attention.query", "layers.{}.self_attn.q_proj"),
    **_both("blocks.{}.attention.key", "layers.{}.self_attn.k_proj"),
    **_both("blocks.{}.attention.value", "layers.{}.self_attn.v_proj"),
    "blocks.{}.attention.query_norm.weight": "layers.{}.self_attn.q_norm.weight",
    "blocks.{}.attention.key_norm.weight": "layers.{}.self_attn.k_norm.weight",
    "blocks.{}.attention.out.weight": "layers.{}.self_attn.o_proj.weight",
    "blocks.{}.feed_forward_norm.weight": "layers.{}.post_attention_layernorm.weight",
    "blocks.{}.feed_forward.gate.weight": "layers.{}.mlp.gate_proj.weight",
    "blocks.{}.feed_forward.up.weight": "layers.{}.mlp.up_proj.weight",
    "blocks.{}.feed_forward.down.weight": "layers.{}.mlp.down_proj.weight",
}
"""The decoders of Llama, Mistral, Qwen2 and Qwen3; the output matrix stands outside of them."""

DECODER_DROPPED = re.compile(r".*rotary_emb\.inv_freq$")


def translate(names: Iterable[str], table: dict[str, str]) -> dict[str, str]:
    """Each of `names` with its counterpart by `table`.

    Raises:
        ValueError: names that the table doesn't hold.
    """
    found, unknown = {}, []
    for name in names:
        number = re.search(r"(?<=\.)\d+(?=\.)", name)
        pattern = name if number is None else name[: number.start()] + "{}" + name[number.end() :]
        if pattern in table:
            found[name] = table[pattern] if number is None else table[pattern].format(number[0])
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"{len(unknown)} tensors have names this family doesn't hold, such as {unknown[0]!r}; "
            "is the file of another family, or of a newer version?"
        )
    return found


def reverse(table: dict[str, str]) -> dict[str, str]:
    """`table` read from right to left."""
    return {theirs: ours for ours, theirs in table.items()}

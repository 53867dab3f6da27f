"""Our names of parameters and those of published files, without the prefix of the part; `{}` is a layer's number."""

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
"""Tensors of theirs that ours has no use for: SigLIP's pooling head, a constant."""

DINOV2 = {
    "class_E": "embeddings.cls_token",
    "register_RE": "embeddings.register_tokens",
    "position_PE": "embeddings.position_embeddings",
    **_both("patch", "embeddings.patch_embeddings.projection"),
    **_both("norm", "layernorm"),
    **_both("blocks.{}.attention_norm", "encoder.layer.{}.norm1"),
    **_both("blocks.{}.attention.query", "encoder.layer.{}.attention.attention.query"),
    **_both("blocks.{}.attention.key", "encoder.layer.{}.attention.attention.key"),
    **_both("blocks.{}.attention.value", "encoder.layer.{}.attention.attention.value"),
    **_both("blocks.{}.attention.out", "encoder.layer.{}.attention.output.dense"),
    "blocks.{}.attention_scale.weight": "encoder.layer.{}.layer_scale1.lambda1",
    **_both("blocks.{}.feed_forward_norm", "encoder.layer.{}.norm2"),
    **_both("blocks.{}.feed_forward.up", "encoder.layer.{}.mlp.fc1"),
    **_both("blocks.{}.feed_forward.down", "encoder.layer.{}.mlp.fc2"),
    "blocks.{}.feed_forward_scale.weight": "encoder.layer.{}.layer_scale2.lambda1",
}
"""DINOv2 with and without registers, in its published files."""

VIT = {
    "class_E": "embeddings.cls_token",
    "position_PE": "embeddings.position_embeddings",
    **_both("patch", "embeddings.patch_embeddings.projection"),
    **_both("norm", "layernorm"),
    **_both("blocks.{}.attention_norm", "encoder.layer.{}.layernorm_before"),
    **_both("blocks.{}.attention.query", "encoder.layer.{}.attention.attention.query"),
    **_both("blocks.{}.attention.key", "encoder.layer.{}.attention.attention.key"),
    **_both("blocks.{}.attention.value", "encoder.layer.{}.attention.attention.value"),
    **_both("blocks.{}.attention.out", "encoder.layer.{}.attention.output.dense"),
    **_both("blocks.{}.feed_forward_norm", "encoder.layer.{}.layernorm_after"),
    **_both("blocks.{}.feed_forward.up", "encoder.layer.{}.intermediate.dense"),
    **_both("blocks.{}.feed_forward.down", "encoder.layer.{}.output.dense"),
}
"""ViT (Dosovitskiy et al., arXiv 2010.11929) in `transformers`."""

DINOV2_GATED = {name: their for name, their in DINOV2.items() if "feed_forward." not in name} | {
    **_both("blocks.{}.feed_forward.gate|up", "encoder.layer.{}.mlp.weights_in"),
    **_both("blocks.{}.feed_forward.down", "encoder.layer.{}.mlp.weights_out"),
}
"""DINOv2's giant; `gate|up` are two matrices of ours, which theirs has concatenated in this order."""

DINOV3 = {
    "class_E": "embeddings.cls_token",
    "register_RE": "embeddings.register_tokens",
    **_both("patch", "embeddings.patch_embeddings"),
    **_both("norm", "norm"),
    **_both("blocks.{}.attention_norm", "layer.{}.norm1"),
    **_both("blocks.{}.attention.query", "layer.{}.attention.q_proj"),
    **_both("blocks.{}.attention.key", "layer.{}.attention.k_proj"),
    **_both("blocks.{}.attention.value", "layer.{}.attention.v_proj"),
    **_both("blocks.{}.attention.out", "layer.{}.attention.o_proj"),
    "blocks.{}.attention_scale.weight": "layer.{}.layer_scale1.lambda1",
    **_both("blocks.{}.feed_forward_norm", "layer.{}.norm2"),
    **_both("blocks.{}.feed_forward.gate", "layer.{}.mlp.gate_proj"),
    **_both("blocks.{}.feed_forward.up", "layer.{}.mlp.up_proj"),
    **_both("blocks.{}.feed_forward.down", "layer.{}.mlp.down_proj"),
    "blocks.{}.feed_forward_scale.weight": "layer.{}.layer_scale2.lambda1",
}
"""DINOv3's ViTs, in their published files."""

INTERNVL = {
    "class_E": "embeddings.cls_token",
    "position_PE": "embeddings.position_embeddings",
    **_both("patch", "embeddings.patch_embeddings.projection"),
    **_both("blocks.{}.attention_norm", "encoder.layer.{}.layernorm_before"),
    **_both("blocks.{}.attention.query", "encoder.layer.{}.attention.q_proj"),
    **_both("blocks.{}.attention.key", "encoder.layer.{}.attention.k_proj"),
    **_both("blocks.{}.attention.value", "encoder.layer.{}.attention.v_proj"),
    **_both("blocks.{}.attention.out", "encoder.layer.{}.attention.projection_layer"),
    "blocks.{}.attention_scale.weight": "encoder.layer.{}.lambda_1",
    **_both("blocks.{}.feed_forward_norm", "encoder.layer.{}.layernorm_after"),
    **_both("blocks.{}.feed_forward.up", "encoder.layer.{}.mlp.fc1"),
    **_both("blocks.{}.feed_forward.down", "encoder.layer.{}.mlp.fc2"),
    "blocks.{}.feed_forward_scale.weight": "encoder.layer.{}.lambda_2",
}
"""InternVL's ViT in `transformers`, which has no norm at its end."""

AIMV2 = {
    "position_PE": "embeddings.position_embedding.weight",
    **_both("patch", "embeddings.patch_embed"),
    "patch_norm.weight": "embeddings.rms_norm.weight",
    "norm.weight": "rms_norm.weight",
    "blocks.{}.attention_norm.weight": "encoder.layers.{}.rms_norm1.weight",
    "blocks.{}.attention.query.weight": "encoder.layers.{}.attention.q_proj.weight",
    "blocks.{}.attention.key.weight": "encoder.layers.{}.attention.k_proj.weight",
    "blocks.{}.attention.value.weight": "encoder.layers.{}.attention.v_proj.weight",
    "blocks.{}.attention.out.weight": "encoder.layers.{}.attention.out_proj.weight",
    "blocks.{}.feed_forward_norm.weight": "encoder.layers.{}.rms_norm2.weight",
    "blocks.{}.feed_forward.gate.weight": "encoder.layers.{}.ffn.gate_proj.weight",
    "blocks.{}.feed_forward.up.weight": "encoder.layers.{}.ffn.up_proj.weight",
    "blocks.{}.feed_forward.down.weight": "encoder.layers.{}.ffn.down_proj.weight",
}
"""AIMv2's image encoder in `transformers`."""

_TRUNK = {
    "position_PE": "preprocessor.pos_embed",
    **_both("patch", "preprocessor.patchifier.proj"),
    **_both("patch_norm", "preprocessor.patchifier.norm"),
    **_both("norm", "trunk.post_trunk_norm"),
    **_both("blocks.{}.attention_norm", "trunk.blocks.{}.norm_1"),
    "blocks.{}.attention.query|key|value.weight": "trunk.blocks.{}.attn.qkv.weight",
    "blocks.{}.attention.out.weight": "trunk.blocks.{}.attn.proj.weight",
    **_both("blocks.{}.feed_forward_norm", "trunk.blocks.{}.norm_2"),
    "blocks.{}.feed_forward.down.weight": "trunk.blocks.{}.mlp.fc2.weight",
}

AIM = _TRUNK | {"blocks.{}.feed_forward.up.weight": "trunk.blocks.{}.mlp.fc1.weight"}
"""AIM in Apple's own code, https://github.com/apple/ml-aim."""

AIM_GATED = _TRUNK | {
    "blocks.{}.feed_forward.gate.weight": "trunk.blocks.{}.mlp.fc1.weight",
    "blocks.{}.feed_forward.up.weight": "trunk.blocks.{}.mlp.fc3.weight",
}
"""AIMv2 in the same code, where its files were published first."""

OPENCLIP = {
    "class_E": "visual.class_embedding",
    "position_PE": "visual.positional_embedding",
    "patch.weight": "visual.conv1.weight",
    **_both("input_norm", "visual.ln_pre"),
    **_both("norm", "visual.ln_post"),
    **_both("blocks.{}.attention_norm", "visual.transformer.resblocks.{}.ln_1"),
    "blocks.{}.attention.query|key|value.weight": "visual.transformer.resblocks.{}.attn.in_proj_weight",
    "blocks.{}.attention.query|key|value.bias": "visual.transformer.resblocks.{}.attn.in_proj_bias",
    **_both("blocks.{}.attention.out", "visual.transformer.resblocks.{}.attn.out_proj"),
    "blocks.{}.attention_scale.weight": "visual.transformer.resblocks.{}.ls_1.gamma",
    **_both("blocks.{}.feed_forward_norm", "visual.transformer.resblocks.{}.ln_2"),
    **_both("blocks.{}.feed_forward.up", "visual.transformer.resblocks.{}.mlp.c_fc"),
    **_both("blocks.{}.feed_forward.down", "visual.transformer.resblocks.{}.mlp.c_proj"),
    "blocks.{}.feed_forward_scale.weight": "visual.transformer.resblocks.{}.ls_2.gamma",
}
"""The ViT of OpenCLIP (https://github.com/mlfoundations/open_clip), of OpenAI's CLIP and of DFN."""

CONNECTOR = {
    **_both("norm", "multi_modal_projector.layer_norm"),
    **_both("up", "multi_modal_projector.linear_1"),
    **_both("out", "multi_modal_projector.linear_2"),
    "row_end_D": "image_newline",
}
"""LLaVA's two-layer MLP, with InternVL's norm before it; and what ends a row of LLaVA-NeXT's tiles."""

DECODER = {
    "embedding.weight": "embed_tokens.weight",
    "norm.weight": "norm.weight",
    "blocks.{}.attention_norm.weight": "layers.{}.input_layernorm.weight",
    **_both("blocks.{}.attention.query", "layers.{}.self_attn.q_proj"),
    **_both("blocks.{}.attention.key", "layers.{}.self_attn.k_proj"),
    **_both("blocks.{}.attention.value", "layers.{}.self_attn.v_proj"),
    "blocks.{}.attention.query_norm.weight": "layers.{}.self_attn.q_norm.weight",
    "blocks.{}.attention.key_norm.weight": "layers.{}.self_attn.k_norm.weight",
    **_both("blocks.{}.attention.out", "layers.{}.self_attn.o_proj"),
    "blocks.{}.feed_forward_norm.weight": "layers.{}.post_attention_layernorm.weight",
    **_both("blocks.{}.feed_forward.gate", "layers.{}.mlp.gate_proj"),
    **_both("blocks.{}.feed_forward.up", "layers.{}.mlp.up_proj"),
    **_both("blocks.{}.feed_forward.down", "layers.{}.mlp.down_proj"),
    "blocks.{}.feed_forward.router.weight": "layers.{}.block_sparse_moe.gate.weight",
    "blocks.{}.feed_forward.experts.gate.weight": "layers.{}.block_sparse_moe.experts.w1.weight",
    "blocks.{}.feed_forward.experts.up.weight": "layers.{}.block_sparse_moe.experts.w3.weight",
    "blocks.{}.feed_forward.experts.down.weight": "layers.{}.block_sparse_moe.experts.w2.weight",
}
"""The decoders of Llama, Mistral, Qwen2, Qwen3, SmolLM3 and Mixtral, without the output matrix."""

QWEN3_MOE = DECODER | {
    "blocks.{}.feed_forward.router.weight": "layers.{}.mlp.gate.weight",
    "blocks.{}.feed_forward.experts.gate.weight": "layers.{}.mlp.experts.gate_proj.weight",
    "blocks.{}.feed_forward.experts.up.weight": "layers.{}.mlp.experts.up_proj.weight",
    "blocks.{}.feed_forward.experts.down.weight": "layers.{}.mlp.experts.down_proj.weight",
}
"""The decoders of Qwen3-MoE and OLMoE."""

AFTER = DECODER | {
    "blocks.{}.attention_out_norm.weight": "layers.{}.post_attention_layernorm.weight",
    "blocks.{}.feed_forward_norm.weight": "layers.{}.pre_feedforward_layernorm.weight",
    "blocks.{}.feed_forward_out_norm.weight": "layers.{}.post_feedforward_layernorm.weight",
}
"""Decoders with norms of what attention and feed-forward give: OLMo 2, Gemma."""

DECODER_DROPPED = re.compile(r".*rotary_emb\.inv_freq$")


def translate(names: Iterable[str], table: dict[str, str]) -> dict[str, str]:
    """The counterpart of each of `names` in `table`.

    Raises:
        ValueError: a name is not in the table.
    """
    translated, unknown = {}, []
    for name in names:
        number = re.search(r"(?<=\.)\d+(?=\.)", name)
        pattern = name if number is None else name[: number.start()] + "{}" + name[number.end() :]
        if pattern in table:
            translated[name] = table[pattern] if number is None else table[pattern].format(number[0])
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"{len(unknown)} tensors have names that this family doesn't have, such as {unknown[0]!r}; "
            "is the file of another family, or of a newer version?"
        )
    return translated


def reverse(table: dict[str, str]) -> dict[str, str]:
    """`table` from theirs to ours."""
    return {theirs: ours for ours, theirs in table.items()}

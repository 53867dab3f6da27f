"""Language models in llama.cpp's GGUF files as ours: config, weights one by one, tokenizer.

Quantised tensors are read as what they stand for, in fp32, by the `gguf` library (the extra `mm1[gguf]`).
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mm1.config.model import DecoderConfig
from mm1.hf.names import reverse, translate
from mm1.hf.vocabulary import Words, words

NAMES = {
    "embedding.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "output.weight": "output.weight",
    "blocks.{}.attention_norm.weight": "blk.{}.attn_norm.weight",
    "blocks.{}.attention.query.weight": "blk.{}.attn_q.weight",
    "blocks.{}.attention.query.bias": "blk.{}.attn_q.bias",
    "blocks.{}.attention.key.weight": "blk.{}.attn_k.weight",
    "blocks.{}.attention.key.bias": "blk.{}.attn_k.bias",
    "blocks.{}.attention.value.weight": "blk.{}.attn_v.weight",
    "blocks.{}.attention.value.bias": "blk.{}.attn_v.bias",
    "blocks.{}.attention.query_norm.weight": "blk.{}.attn_q_norm.weight",
    "blocks.{}.attention.key_norm.weight": "blk.{}.attn_k_norm.weight",
    "blocks.{}.attention.out.weight": "blk.{}.attn_output.weight",
    "blocks.{}.feed_forward_norm.weight": "blk.{}.ffn_norm.weight",
    "blocks.{}.feed_forward.gate.weight": "blk.{}.ffn_gate.weight",
    "blocks.{}.feed_forward.up.weight": "blk.{}.ffn_up.weight",
    "blocks.{}.feed_forward.down.weight": "blk.{}.ffn_down.weight",
}

_ARCHITECTURES = ("llama", "qwen2", "qwen3")
_CONTROL = 3  # of llama.cpp's token types: a special token

_DIGITS = {"type": "Digits", "individual_digits": True}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_SPLITS = {"gpt-2": _BYTES, "smollm": {"type": "Sequence", "pretokenizers": [_DIGITS, _BYTES]}}
"""How a text is cut before byte pairs are merged, by the name llama.cpp gives it."""


class Gguf:
    """A GGUF file of a language model. Nothing of its weights is read before it is asked for.

    Raises:
        ValueError: `gguf` is not installed, or the file is of another kind.
    """

    def __init__(self, path: Path):
        try:
            from gguf import GGUFReader
        except ImportError:
            raise ValueError("reading GGUF needs the package: pip install 'mm1[gguf]'") from None
        try:
            self.path, self._reader = path, GGUFReader(path)
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"{path} is no whole GGUF file ({error}); name one, a model's folder or the hub's"
            ) from None
        self._fields: dict[str, Any] = {name: x.contents() for name, x in self._reader.fields.items()}
        self.architecture: str = self._fields["general.architecture"]
        if self.architecture not in _ARCHITECTURES:
            raise ValueError(
                f"{path} holds a model of type {self.architecture!r}; known: {', '.join(_ARCHITECTURES)}. "
                "Import the safetensors of the same model"
            )

    def config(self) -> DecoderConfig:
        """Our config of the model in the file.

        Raises:
            ValueError: a part that our decoder lacks, or that GGUF states in a form we don't read.
        """
        shapes = {tensor.name: [int(size) for size in tensor.shape] for tensor in self._reader.tensors}
        scaling = self._field("rope.scaling.type", "none")
        unknown = [name for name in ("rope_freqs.weight", "blk.0.ffn_gate_inp.weight") if name in shapes]
        if unknown or scaling != "none":
            what = unknown[0] if unknown else f"rope scaling {scaling!r}"
            raise ValueError(f"{self.path} has {what}, which is not read from GGUF; import the model's safetensors")
        width, heads = self._field("embedding_length"), self._field("attention.head_count")
        return DecoderConfig(
            vocabulary=shapes["token_embd.weight"][1],
            width=width,
            layers=self._field("block_count"),
            heads=heads,
            kv_heads=self._field("attention.head_count_kv", heads),
            head_width=self._field("attention.key_length", width // heads),
            mlp_width=self._field("feed_forward_length"),
            rope_base=self._field("rope.freq_base", 10_000.0),
            # stored in fp32; its shortest decimals are what was meant
            norm_epsilon=float(str(np.float32(self._field("attention.layer_norm_rms_epsilon")))),
            qk_norm="blk.0.attn_q_norm.weight" in shapes,
            qkv_bias="blk.0.attn_q.bias" in shapes,
            tie_embeddings="output.weight" not in shapes,
        )

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each tensor of our `Decoder` by its name, in fp32, one at a time."""
        from gguf.quants import dequantize

        config = self.config()
        names = translate([tensor.name for tensor in self._reader.tensors], reverse(NAMES))
        heads = {"query": config.heads, "key": config.kv_heads}
        for tensor in self._reader.tensors:
            name = names[tensor.name]
            x = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
            part = name.split(".")[-2]
            if self.architecture == "llama" and part in heads:
                # llama.cpp turns neighbouring channels of its Llamas, we and Hugging Face the halves of a head
                x = x.unflatten(0, (heads[part], -1, 2)).transpose(1, 2).flatten(0, 2)
            yield name, x

    def words(self) -> Words:
        """The tokenizer with the project's marks, and the chat template."""
        tokens = self._fields["tokenizer.ggml.tokens"]
        said = {"chat_template": self._fields.get("tokenizer.chat_template")}
        said["add_bos_token"] = self._fields.get("tokenizer.ggml.add_bos_token", False)
        for mark, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
            number = self._fields.get(f"tokenizer.ggml.{name}_token_id")
            said[f"{mark}_token"] = None if number is None else tokens[number]
        return words(self.tokenizer(), said)

    def tokenizer(self) -> dict[str, Any]:
        """The file's tokenizer as a tokenizer.json.

        Raises:
            ValueError: it is not byte-level BPE, or cuts texts in a way we don't know.
        """
        kind, split = self._fields.get("tokenizer.ggml.model"), self._fields.get("tokenizer.ggml.pre", "gpt-2")
        if kind != "gpt2" or split not in _SPLITS:
            raise ValueError(
                f"{self.path} has a tokenizer of type {kind!r} ({split}); known: gpt2 ({', '.join(_SPLITS)}). "
                "Give the model's own tokenizer.json"
            )
        tokens, types = self._fields["tokenizer.ggml.tokens"], self._fields["tokenizer.ggml.token_type"]
        form = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        special = [number for number, of in enumerate(types) if of == _CONTROL]
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": number, "content": tokens[number], **form} for number in special],
            "normalizer": None,
            "pre_tokenizer": _SPLITS[split],
            "post_processor": None,
            "decoder": _BYTES,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {token: number for number, token in enumerate(tokens)},
                "merges": [merge.split(" ") for merge in self._fields["tokenizer.ggml.merges"]],
            },
        }

    def _field(self, name: str, default: Any = None) -> Any:
        value = self._fields.get(f"{self.architecture}.{name}", default)
        if value is None:
            raise ValueError(f"{self.path} doesn't say {self.architecture}.{name}; is it a whole model?")
        return value

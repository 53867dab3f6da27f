"""Language models from llama.cpp's GGUF files: config, weights one by one, tokenizer.

Quantised tensors are dequantised to fp32 by the `gguf` library, tokenizers are read by `transformers` (the extra
`mm1[gguf]`).
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import json
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


_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_SENTENCEPIECE: dict[bool, dict[str, Any]] = {
    True: {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, _SPACES]},
        "pre_tokenizer": None,
    },
    False: {"normalizer": _SPACES, "pre_tokenizer": None},
}
"""How SentencePiece's kind is written, by whether a space is put before every text, also one that begins with a space;
`transformers` puts it before others only."""


class Gguf:
    """A GGUF file of a language model. Weights are read when they are used.

    Raises:
        ValueError: `gguf` is not installed, or the file is not a GGUF of a known architecture.
    """

    def __init__(self, path: Path):
        try:
            from gguf import GGUFReader
        except ImportError:
            raise ValueError("reading GGUF needs a package: pip install 'mm1[gguf]'") from None
        try:
            self.path, self._reader = path, GGUFReader(path)
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"{path} is not a whole GGUF file ({error}); name one, a model's folder or a name on the hub"
            ) from None
        self._fields: dict[str, Any] = {name: x.contents() for name, x in self._reader.fields.items()}
        self.architecture: str = self._fields["general.architecture"]
        if self.architecture not in _ARCHITECTURES:
            raise ValueError(
                f"{path} holds a model of type {self.architecture!r}; known: {', '.join(_ARCHITECTURES)}. "
                "Import the safetensors of the same model"
            )

    def config(self) -> DecoderConfig:
        """Our config for the model in the file.

        Raises:
            ValueError: a part that our decoder doesn't have, or that we don't read from GGUF.
        """
        shapes = {tensor.name: [int(size) for size in tensor.shape] for tensor in self._reader.tensors}
        scaling = self._field("rope.scaling.type", "none")
        unread = [name for name in ("rope_freqs.weight", "blk.0.ffn_gate_inp.weight") if name in shapes]
        if unread or scaling != "none":
            what = unread[0] if unread else f"rope scaling {scaling!r}"
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
            # stored in fp32: the shortest decimal number that rounds to it is the one that was meant
            norm_epsilon=float(str(np.float32(self._field("attention.layer_norm_rms_epsilon")))),
            qk_norm="blk.0.attn_q_norm.weight" in shapes,
            qkv_bias="blk.0.attn_q.bias" in shapes,
            tie_embeddings="output.weight" not in shapes,
            max_positions=self._fields.get(f"{self.architecture}.context_length"),
        )

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of our `Decoder` with their names, in fp32, one at a time."""
        from gguf.quants import dequantize

        config = self.config()
        names = translate([tensor.name for tensor in self._reader.tensors], reverse(NAMES))
        heads = {"query": config.heads, "key": config.kv_heads}
        for tensor in self._reader.tensors:
            name = names[tensor.name]
            x = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
            part = name.split(".")[-2]
            if self.architecture == "llama" and part in heads:
                # llama.cpp rotates neighbouring channels of a Llama's heads together, we and transformers the halves
                x = x.unflatten(0, (heads[part], -1, 2)).transpose(1, 2).flatten(0, 2)
            yield name, x

    def words(self) -> Words:
        """The tokenizer with the project's marks, and the chat template.

        Raises:
            ValueError: `transformers` is not installed, or can't read the file's tokenizer.
        """
        kind = self._fields.get("tokenizer.ggml.model")
        tokens = self._fields["tokenizer.ggml.tokens"]
        settings = {"chat_template": self._fields.get("tokenizer.chat_template")}
        settings["add_bos_token"] = self._fields.get("tokenizer.ggml.add_bos_token", kind == "llama")  # SentencePiece
        for mark, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
            number = self._fields.get(f"tokenizer.ggml.{name}_token_id")
            settings[f"{mark}_token"] = None if number is None else tokens[number]
        return words(self._tokenizer(), settings)

    def _tokenizer(self) -> dict[str, Any]:
        """The file's tokenizer as a tokenizer.json, as `transformers` reads it."""
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise ValueError("reading GGUF needs a package: pip install 'mm1[gguf]'") from None
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path.parent, gguf_file=self.path.name)
        except Exception as error:  # whatever it is, there is another way
            kind, split = (self._fields.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
            raise ValueError(
                f"the tokenizer of {self.path} (type {kind}, {split}) can't be read: {error}; give that of the model "
                "it was made from, --tokenizer FOLDER with its tokenizer.json"
            ) from None
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        if self._fields.get("tokenizer.ggml.model") == "llama":
            content |= _SENTENCEPIECE[self._fields.get("tokenizer.ggml.add_space_prefix", True)]
        return content

    def _field(self, name: str, default: Any = None) -> Any:
        value = self._fields.get(f"{self.architecture}.{name}", default)
        if value is None:
            raise ValueError(f"{self.path} has no field {self.architecture}.{name}; is it a whole model?")
        return value

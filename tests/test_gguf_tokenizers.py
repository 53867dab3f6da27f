"""Tokenizers inside GGUF files, of the kinds that published models have, read as those models read text."""

import json
from pathlib import Path

import pytest
from test_gguf import write
from tokenizers import Regex, decoders, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import BPE
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from mm1.checkpoint import load_for_use
from mm1.config.model import DecoderConfig
from mm1.exchange.importing import import_model
from mm1.model.decoder import Decoder
from mm1.model.layers import initialise

gguf = pytest.importorskip("gguf")

TEXTS = (
    "It's 12345 things,  isn't it?\n\n\tSure: 3.14 (or 7)!",
    " Zoë's naïve café\r\n costs 1,000 €",
    "def f(x):\n    return x  # the   end",
    "  two spaces, then 日本語 and 🐱🐱.",
)


def byte_level(split: str) -> HFTokenizer:
    """A byte-level BPE that splits text by this pattern, as its tokenizer.json has it."""
    tokenizer = HFTokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS * 9, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return tokenizer


def sentencepiece() -> HFTokenizer:
    """A BPE of SentencePiece's kind: words begin with ▁, unknown letters are bytes."""
    tokenizer = HFTokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(spaces)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [text.replace(" ", "\n▁").split("\n") for text in TEXTS[:3]]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special)
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.train_from_iterator((word for text in words * 9 for word in text), trainer)
    tokenizer.normalizer = normalizers.Sequence(spaces)
    return tokenizer


def written(path: Path, tokenizer: HFTokenizer, *, kind: str, split: str, special: dict[str, int]) -> Path:
    """A tiny GGUF with this tokenizer, as llama.cpp's converter writes one."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    shape = {"width": 32, "layers": 1, "heads": 2, "kv_heads": 2, "head_width": 16, "mlp_width": 64}
    decoder = Decoder(DecoderConfig(vocabulary=len(vocabulary), tie_embeddings=False, **shape))
    initialise(decoder, 0)
    tokens = [token for token, _ in vocabulary]
    types = [_type(token, set(special)) for token in tokens]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]

    def add(writer) -> None:
        writer.add_tokenizer_model(kind)
        writer.add_tokenizer_pre(split)
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        if kind == "llama":  # merges stand in it as scores
            writer.add_token_scores([-float(number) for number in range(len(tokens))])
        else:
            writer.add_token_merges([" ".join(merge) for merge in merges])
        writer.add_bos_token_id(special["<s>"])
        writer.add_eos_token_id(special["</s>"])

    write(path, decoder, "llama" if kind == "llama" else "qwen2", add=add)
    return path


def _type(token: str, special: set[str]) -> int:
    if token == "<unk>":
        return 2
    return 3 if token in special else 6 if token.startswith("<0x") else 1


@pytest.mark.parametrize(
    ("split", "pattern"), [("qwen2", PRETOKENIZE_REGEX), ("llama-bpe", TikTokenConverter(None).pattern)]
)
def test_a_byte_level_tokenizer_splits_text_as_its_family_does(split, pattern, tmp_path):
    tokenizer = byte_level(pattern)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    special = {token: tokenizer.token_to_id(token) for token in ("<s>", "</s>")}
    path = written(tmp_path / "model.gguf", tokenizer, kind="gpt2", split=split, special=special)
    loaded = load_for_use(import_model(str(path), tmp_path / "run").folder)
    for text in TEXTS:
        assert loaded.tokenizer.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids
    assert loaded.tokenizer.ends == {special["</s>"]}


def test_a_sentencepiece_tokenizer_merges_by_its_scores(tmp_path):
    tokenizer = sentencepiece()
    special = {token: tokenizer.token_to_id(token) for token in ("<s>", "</s>")}
    path = written(tmp_path / "model.gguf", tokenizer, kind="llama", split="default", special=special)
    loaded = load_for_use(import_model(str(path), tmp_path / "run").folder)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert loaded.tokenizer.encode(text) == ids
    assert loaded.tokenizer.begin == [special["<s>"]]


def test_a_tokenizer_given_beside_replaces_the_files_own(tmp_path):
    tokenizer = byte_level(PRETOKENIZE_REGEX)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    special = {token: tokenizer.token_to_id(token) for token in ("<s>", "</s>")}
    path = written(tmp_path / "model.gguf", tokenizer, kind="unheard-of", split="unheard-of", special=special)
    with pytest.raises(ValueError, match=r"type unheard-of.*--tokenizer FOLDER"):
        import_model(str(path), tmp_path / "run")
    (tmp_path / "own").mkdir()
    tokenizer.save(str(tmp_path / "own/tokenizer.json"))
    loaded = load_for_use(import_model(str(path), tmp_path / "run", tokenizer=tmp_path / "own").folder)
    assert loaded.tokenizer.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0], add_special_tokens=False).ids

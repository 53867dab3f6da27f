"""Tokenizers and chat templates as people publish them: what they say beside the vocabulary is neither lost nor obeyed
by mistake."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import BPE, Unigram, WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from mm1.checkpoint import Loaded, load_for_use
from mm1.data.chat_format import prompt
from mm1.data.encode import encode
from mm1.data.tiles import TileSpec
from mm1.document import Text
from mm1.exchange.importing import import_model

transformers = pytest.importorskip("transformers")

ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""As Zephyr's: no token is named `<|user|>`."""


def published(folder: Path, tokenizer: dict[str, Any], *, template: str = "", vocabulary: int = 300) -> Path:
    """A tiny random Llama with this tokenizer.json, as `save_pretrained` writes it."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=vocabulary, **shape)).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    settings |= {"chat_template": template} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def letters(special: list[str]) -> HFTokenizer:
    tokenizer = HFTokenizer(BPE({chr(n): n for n in range(256)}, [], fuse_unk=False))
    tokenizer.add_special_tokens(special)
    return tokenizer


def imported(source: Path, folder: Path) -> Loaded:
    import_model(str(source), folder)
    return load_for_use(folder)


def _ids(loaded: Loaded, question: str) -> list[int]:
    return encode(prompt([Text(question)]), loaded.tokenizer, tile=TileSpec(16, 4), end=False).tokens.tolist()


def test_a_template_that_writes_user_as_plain_text_is_given_its_own_tokens(tmp_path):
    source = published(tmp_path / "zephyr", json.loads(letters(["<s>", "</s>"]).to_str()), template=ZEPHYR)
    loaded = imported(source, tmp_path / "run")
    theirs = transformers.AutoTokenizer.from_pretrained(source)
    expected = theirs.apply_chat_template(
        [{"role": "user", "content": "who?"}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert _ids(loaded, "who?") == expected


def test_truncation_and_padding_of_a_tokenizer_file_are_how_it_was_last_called(tmp_path):
    tokenizer = letters(["<s>", "</s>"])
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16, pad_id=0, pad_token="a")
    loaded = imported(published(tmp_path / "cut", json.loads(tokenizer.to_str())), tmp_path / "run")
    assert loaded.tokenizer.encode("a" * 40) == [ord("a")] * 40
    assert loaded.tokenizer.encode("ab") == [ord("a"), ord("b")]


def _with_holes() -> HFTokenizer:
    words = WordLevel({"a": 0, "b": 1, "unknown": 2, "far": 40, "away": 41}, unk_token="unknown")
    tokenizer = HFTokenizer(words)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


@pytest.mark.parametrize("ids", [(3, 20), (42, 50), (42, 43)])
def test_marks_of_a_vocabulary_with_holes_take_ids_after_the_largest(ids, tmp_path):
    """Ids 3 to 39 belong to no word; special tokens stand in the hole, or after the words with another hole."""
    content = json.loads(_with_holes().to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] = [
        {"id": id_, "content": name, **flags} for id_, name in zip(ids, ("<s>", "</s>"), strict=True)
    ]
    loaded = imported(published(tmp_path / "holes", content, vocabulary=44), tmp_path / "run")
    tokenizer = loaded.tokenizer
    assert tokenizer.encode("a b far away") == [0, 1, 40, 41]
    assert tokenizer.ends == {ids[1]}
    new = sorted(id_ for mark, id_ in tokenizer.marks.items() if mark not in ("begin", "end"))
    assert new == [*range(max(42, ids[1] + 1), max(42, ids[1] + 1) + len(new))]
    assert tokenizer.vocabulary == new[-1] + 1 == loaded.run.model.decoder.vocabulary
    assert len(tokenizer.breaks) == tokenizer.vocabulary


def test_the_words_of_a_unigram_model_keep_their_ids(tmp_path):
    """Its vocabulary is a list of words and scores."""
    tokenizer = HFTokenizer(Unigram([("?", -9.0), *((chr(n), -3.0) for n in range(97, 123)), ("who", -1.0)], unk_id=0))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    loaded = imported(published(tmp_path / "unigram", json.loads(tokenizer.to_str())), tmp_path / "run")
    assert loaded.tokenizer.encode("whoa") == [27, 1]
    assert loaded.tokenizer.ends == {29}


def test_a_text_begins_as_the_tokenizer_says_whatever_its_settings_do(tmp_path):
    """As in transformers 5, which doesn't ask tokenizer_config.json for it."""
    source = published(tmp_path / "theirs", json.loads(letters(["<s>", "</s>"]).to_str()))
    (source / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "add_bos_token": True}))
    assert imported(source, tmp_path / "run").tokenizer.begin == []
    assert transformers.AutoTokenizer.from_pretrained(source)("ab").input_ids == [97, 98]


def test_a_token_that_ends_an_answer_need_not_be_special(tmp_path):
    """As Gemma's first `<end_of_turn>`; a word is no end, though a class's default id may be that of one."""
    tokenizer = letters(["<s>", "</s>"])
    tokenizer.add_tokens(["<end_of_turn>"])
    source = published(tmp_path / "theirs", json.loads(tokenizer.to_str()))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 258, 2]}))
    assert imported(source, tmp_path / "run").tokenizer.ends == {257, 258}


def test_a_template_stays_as_it_is_without_special_tokens_and_among_others(tmp_path):
    content = json.loads(letters(["<s>", "</s>"]).to_str())
    source = published(tmp_path / "theirs", content)
    plain = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    settings = {"chat_template": {"tool_use": "tools!", "default": plain}}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    assert _ids(imported(source, tmp_path / "run"), "who?") == [ord(letter) for letter in "who?"]


@pytest.mark.parametrize(
    ("file", "said"),
    [("tokenizer.model", r"transformers makes one.*--tokenizer FOLDER"), ("tokenizer.json", r"is not JSON .*again")],
)
def test_a_tokenizer_that_cannot_be_read_is_named_with_its_mend(file, said, tmp_path):
    """SentencePiece's file alone, and the pointer that stands for a file not yet fetched."""
    source = published(tmp_path / "theirs", {})
    (source / "tokenizer.json").unlink()
    (source / file).write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=said):
        import_model(str(source), tmp_path / "run")


def test_a_template_that_asks_for_tools_is_told_that_there_are_none(tmp_path):
    template = "{% if tools is not none %}{{ raise_exception('tools!') }}{% endif %}" + ZEPHYR
    source = published(tmp_path / "tools", json.loads(letters(["<s>", "</s>"]).to_str()), template=template)
    loaded = imported(source, tmp_path / "run")
    assert loaded.tokenizer.decode(_ids(loaded, "who?")).replace(" ", "").endswith("who?\n<|assistant|>")

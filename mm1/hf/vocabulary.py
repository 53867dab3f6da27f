"""A published model's tokenizer with the project's marks: its own special tokens stand for some, the rest are new."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as HFTokenizer

from mm1.data.chat_format import TEMPLATE
from mm1.data.chat_template import ChatTemplate
from mm1.data.tokenizer import MARKS

State = dict[str, torch.Tensor]

_OTHER_TOKENIZERS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json", "vocab.json")
"""Files of tokenizers that are not read."""

_SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


@dataclass(frozen=True, slots=True)
class Words:
    """A tokenizer.json with every mark of the project, and the model's chat template if it has one."""

    tokenizer: dict[str, Any]
    template: str = ""


def read_words(folder: Path, *, image: int | None = None) -> Words:
    """The words of the model in a folder in HF layout; `image` is the image token of a multimodal model.

    Raises:
        ValueError: there is no tokenizer.json, or the template can't be read.
    """
    if not (folder / "tokenizer.json").is_file():
        others = [name for name in _OTHER_TOKENIZERS if (folder / name).is_file()]
        mend = (
            f"it has {others[0]}, of which transformers makes one: AutoTokenizer.from_pretrained({str(folder)!r})"
            f".save_pretrained({str(folder)!r})"
            if others
            else "download it too"
        )
        raise ValueError(f"{folder} has no tokenizer.json; {mend}, or give another's, --tokenizer FOLDER")
    settings = {
        name: value for file in ("special_tokens_map", "tokenizer_config") for name, value in _json(folder, file)
    }
    for file in ("generation_config", "config"):
        ends = dict(_json(folder, file)).get("eos_token_id")
        if ends is not None:
            break
    settings |= {name: value for name, value in _json(folder, "chat_template") if name == "chat_template"}
    if (folder / TEMPLATE).is_file():
        settings["chat_template"] = (folder / TEMPLATE).read_text()
    settings.pop("add_bos_token", None)  # transformers 5 doesn't ask it where there is a tokenizer.json
    tokenizer = dict(_json(folder, "tokenizer"))
    return words(tokenizer, settings, ends=ends if isinstance(ends, list) else [ends], image=image)


def words(
    tokenizer: dict[str, Any], settings: Mapping[str, Any], *, ends: Sequence[int | None] = (), image: int | None = None
) -> Words:
    """The words of a tokenizer with these `settings` (bos_token, eos_token, ...), as in a tokenizer_config.json.

    `add_bos_token` tells, as in a GGUF file, whether bos_token goes before a text; without it the tokenizer does.

    A text begins with the tokens that this tokenizer puts before it, in some families with none. `ends` are further
    tokens that end an answer. What a file says of truncation and padding is how it was last called: neither is kept.
    """
    tokenizer = _without_holes(tokenizer | {"truncation": None, "padding": None})
    theirs = HFTokenizer.from_str(json.dumps(tokenizer))
    names = {name: _content(token) for name, token in settings.items() if name.endswith("_token") and _content(token)}
    numbers = {name: theirs.token_to_id(token) for name, token in names.items()}
    ids = {name: number for name, number in numbers.items() if number is not None}
    added = {token["id"] for token in tokenizer.get("added_tokens") or []}  # an end in the vocabulary is a word
    own = {"begin": _begin(theirs, ids.get("bos_token"), settings.get("add_bos_token"))}
    if last := [*dict.fromkeys(end for end in (ids.get("eos_token"), *ends) if end is not None and end in added)]:
        own["end"] = last
    if "pad_token" in ids and ids["pad_token"] not in (*own["begin"], *last):
        own["pad"] = [ids["pad_token"]]
    if image is not None and theirs.id_to_token(image) is not None:
        own["image"] = [image]
    template = settings.get("chat_template") or ""
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}
    if isinstance(template, dict):  # several templates, by name
        template = template.get("default", "")
    if template:
        begin = names.get("bos_token", "") if own["begin"] and image is not None else ""
        template = _self_contained(template, names, begin=begin)
    return Words(with_marks(tokenizer, own), template)


def _begin(tokenizer: HFTokenizer, bos: int | None, adds: bool | None) -> list[int]:
    """The tokens that `transformers` puts before a text: as `adds` says, else those of the tokenizer itself."""
    if adds is not None:
        return [bos] if adds and bos is not None else []
    bare, whole = tokenizer.encode("a", add_special_tokens=False).ids, tokenizer.encode("a").ids
    return next((whole[:at] for at in range(len(whole)) if whole[at : at + len(bare)] == bare), [])


def _self_contained(template: str, names: Mapping[str, str], *, begin: str) -> str:
    """The template with the spelling of the special tokens in it, and with `begin` before every conversation.

    Templates of multimodal models mostly leave `begin` to the processor, which adds it to a text without one.
    """
    spellings = "".join(f"{{% set {name} = {json.dumps(text, ensure_ascii=False)} %}}" for name, text in names.items())
    probe = [{"role": "user", "content": [{"type": "text", "text": "a probe"}]}]
    spellings += "\n" * bool(spellings)
    if not ChatTemplate(spellings + template)(probe).startswith(begin):
        template = f"{begin}{template}"
    return spellings + template


def with_marks(tokenizer: dict[str, Any], own: Mapping[str, list[int]]) -> dict[str, Any]:
    """A tokenizer.json with every mark of the project; tokens that it has keep their ids.

    `own` are the model's tokens for some marks, by the mark. A mark that the tokenizer has by its name stays as it is.
    Others get the ids after the largest one; many models have rows for these, since their matrices are padded to a
    round size. Their names are like `<|mm1_user|>`, since a chat template may write `<|user|>` as plain text. All are
    recorded in the post-processor (see `tokenizer.own_marks`).
    """
    added = list(tokenizer.get("added_tokens") or [])
    ids = vocabulary_of(tokenizer)
    marks = dict(own)
    last = max(ids.values())
    for mark in MARKS:
        if mark in marks or f"<|{mark}|>" in ids:
            continue
        last += 1
        name = f"<|mm1_{mark}|>"
        added.append({"id": last, "content": name, **_SPECIAL})
        ids[name], marks[mark] = last, [last]
    spelling = {id_: token for token, id_ in ids.items()}
    named = {name: (numbers, [spelling[id_] for id_ in numbers]) for name, numbers in marks.items()}
    return tokenizer | {"added_tokens": added, "post_processor": post_processor(named)}


def vocabulary_of(tokenizer: dict[str, Any]) -> dict[str, int]:
    """The id of each token of a tokenizer.json, added tokens included."""
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram's: pairs of a token and its score
        vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
    return vocabulary | {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}


def _without_holes(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer with a placeholder for each id that no token has, up to the largest.

    The library numbers added tokens from the count of tokens on, whatever their ids in the file: with a hole before
    them they would get the ids of words.
    """
    vocabulary = tokenizer["model"]["vocab"]
    added = sorted(tokenizer.get("added_tokens") or [], key=lambda token: token["id"])
    content = {token["id"]: token["content"] for token in added}
    size = len(vocabulary)
    if isinstance(vocabulary, dict) and vocabulary:
        ids, size = set(vocabulary.values()), max(vocabulary.values()) + 1
        inside = {content.get(id_, _unused(id_)): id_ for id_ in range(size) if id_ not in ids}
        tokenizer = tokenizer | {"model": tokenizer["model"] | {"vocab": vocabulary | inside}}
    beyond = [id_ for id_ in range(size, max(content, default=0)) if id_ not in content]
    added += [{"id": id_, "content": _unused(id_), **_SPECIAL} for id_ in beyond]
    return tokenizer | {"added_tokens": sorted(added, key=lambda token: token["id"])}


def _unused(id_: int) -> str:
    return f"<|mm1_unused_{id_}|>"


def post_processor(marks: Mapping[str, tuple[list[int], list[str]]]) -> dict[str, Any]:
    """A post-processor that puts the mark `begin` before every text, and records ids and spelling of all `marks`."""
    alone, other = ({"Sequence": {"id": letter, "type_id": 0}} for letter in "AB")
    first = [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}] if marks["begin"][0] else []
    named = {f"<|{name}|>": ids_and_tokens for name, ids_and_tokens in marks.items()}
    return {
        "type": "TemplateProcessing",
        "single": [*first, alone],
        "pair": [*first, alone, other],
        "special_tokens": {name: {"id": name, "ids": ids, "tokens": tokens} for name, (ids, tokens) in named.items()},
    }


def extended(decoder: State, vocabulary: int) -> State:
    """The state of our `Decoder` with a row for each of `vocabulary` tokens; unchanged if it has enough.

    A new row is the mean of the old ones. So its logit is the mean of theirs, and the new tokens together get at most
    their share of the probability, while a random row could get nearly all of it
    (https://nlp.stanford.edu/~johnhew/vocab-expansion.html).
    """
    state = dict(decoder)
    for name in ("embedding.weight", "output.weight"):
        if name in decoder and len(decoder[name]) < vocabulary:
            old_VD = decoder[name]
            mean_D = old_VD.double().mean(0).to(old_VD.dtype)
            state[name] = torch.cat([old_VD, mean_D.expand(vocabulary - len(old_VD), -1)])
    return state


def _content(token: Any) -> str:
    """The text of a token in tokenizer_config.json, which is a string or an object; empty if there is none."""
    return (token.get("content") or "") if isinstance(token, dict) else token if isinstance(token, str) else ""


def _json(folder: Path, name: str) -> list[tuple[str, Any]]:
    file = folder / f"{name}.json"
    try:
        return [*json.loads(file.read_text()).items()] if file.is_file() else []
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); download it again") from None

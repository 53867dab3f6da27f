"""The words of a published model: its special tokens as our marks, its chat template, and tokens that it lacks."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as HFTokenizer

from mm1.data.chat import TEMPLATE
from mm1.data.chat_template import ChatTemplate
from mm1.data.tokenizer import MARKS

State = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Words:
    """A tokenizer.json that holds every mark of the project, and the model's chat template, where it has one."""

    tokenizer: dict[str, Any]
    template: str = ""


def read_words(folder: Path, *, image: int | None = None) -> Words:
    """The words of the model in a folder in HF layout; `image` is its image token, of a model that sees.

    Raises:
        ValueError: no tokenizer.json, or a template that can't be read.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder} has no tokenizer.json, which the model's words stand in")
    said = {name: value for file in ("special_tokens_map", "tokenizer_config") for name, value in _json(folder, file)}
    for file in ("generation_config", "config"):
        ends = dict(_json(folder, file)).get("eos_token_id")
        if ends is not None:
            break
    said |= {name: value for name, value in _json(folder, "chat_template") if name == "chat_template"}
    if (folder / TEMPLATE).is_file():
        said["chat_template"] = (folder / TEMPLATE).read_text()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    return words(tokenizer, said, ends=ends if isinstance(ends, list) else [ends], image=image)


def words(
    tokenizer: dict[str, Any], said: Mapping[str, Any], *, ends: Sequence[int | None] = (), image: int | None = None
) -> Words:
    """The words of a tokenizer of which `said`, as in a tokenizer_config.json, tells bos_token, eos_token and more.

    A text begins with what that tokenizer puts before it: with nothing, in some families. `ends` are further tokens
    that end an answer.
    """
    made = HFTokenizer.from_str(json.dumps(tokenizer))
    names = {name: _content(token) for name, token in said.items() if name.endswith("_token") and _content(token)}
    found = {name: made.token_to_id(token) for name, token in names.items()}
    ids = {name: number for name, number in found.items() if number is not None}
    special = {token["id"] for token in tokenizer.get("added_tokens") or [] if token.get("special")}
    own = {"begin": _begin(made, ids.get("bos_token"), said.get("add_bos_token"))}
    if last := [*dict.fromkeys(end for end in (ids.get("eos_token"), *ends) if end is not None and end in special)]:
        own["end"] = last
    if "pad_token" in ids and ids["pad_token"] not in (*own["begin"], *last):
        own["pad"] = [ids["pad_token"]]
    if image is not None and made.id_to_token(image) is not None:
        own["image"] = [image]
    template = said.get("chat_template") or ""
    if isinstance(template, list):  # several by name
        template = next((one["template"] for one in template if one["name"] == "default"), "")
    if template:
        begin = names.get("bos_token", "") if own["begin"] and image is not None else ""
        template = _whole(template, names, begin=begin)
    return Words(with_marks(tokenizer, own), template)


def _begin(tokenizer: HFTokenizer, bos: int | None, adds: bool | None) -> list[int]:
    """What `transformers` begins a text with: as tokenizer_config.json says, else as the tokenizer does."""
    if adds is not None:
        return [bos] if adds and bos is not None else []
    bare, whole = tokenizer.encode("a", add_special_tokens=False).ids, tokenizer.encode("a").ids
    return next((whole[:at] for at in range(len(whole)) if whole[at : at + len(bare)] == bare), [])


def _whole(template: str, names: Mapping[str, str], *, begin: str) -> str:
    """A template that needs no tokenizer beside it to name the special tokens; `begin` is what it must begin with.

    Templates of models that see mostly leave that token to the processor, which adds it to a text without one.
    """
    known = "".join(f"{{% set {name} = {json.dumps(token, ensure_ascii=False)} %}}" for name, token in names.items())
    probe = [{"role": "user", "content": [{"type": "text", "text": "a probe"}]}]
    whole = f"{known}\n{template}"
    if not ChatTemplate(whole)(probe).startswith(begin):
        whole = f"{known}\n{begin}{template}"
    return whole


def with_marks(tokenizer: dict[str, Any], own: Mapping[str, list[int]] | None = None) -> dict[str, Any]:
    """A tokenizer.json that holds every mark of the project; what it held before keeps its id.

    `own` are tokens that stand for marks already, by the mark: the post-processor then says which (see
    `tokenizer.own_marks`). A mark that is there by its name stays where it is. Others get the ids after the last one:
    often rows that the model's matrices hold anyway, as many are padded to a round size.
    """
    added = list(tokenizer.get("added_tokens") or [])
    vocabulary = tokenizer["model"]["vocab"]
    known = {token["content"] for token in added} | set(vocabulary)
    last = max([*vocabulary.values(), *(token["id"] for token in added)])
    for name in (f"<|{name}|>" for name in MARKS if name not in (own or {})):
        if name in known:
            continue
        last += 1
        form = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        added.append({"id": last, "content": name, **form})
    if own is None:
        return tokenizer | {"added_tokens": added}
    spelled = {number: token for token, number in vocabulary.items()} | {one["id"]: one["content"] for one in added}
    marks = {name: (ids, [spelled[number] for number in ids]) for name, ids in own.items()}
    return tokenizer | {"added_tokens": added, "post_processor": post_processor(marks)}


def post_processor(marks: Mapping[str, tuple[list[int], list[str]]]) -> dict[str, Any]:
    """What puts the tokens of the mark `begin` before every text, and names those of all `marks`: ids and spelling."""
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
    """The state of our `Decoder` with room for `vocabulary` tokens; one with room enough as it is.

    A new row is the mean of the old ones. So its logit is the mean of theirs, and all new tokens together take no
    larger part of the probability than of the vocabulary, where a random row could take nearly all
    (https://nlp.stanford.edu/~johnhew/vocab-expansion.html).
    """
    made = dict(decoder)
    for name in ("embedding.weight", "output.weight"):
        if name in decoder and len(decoder[name]) < vocabulary:
            old_VD = decoder[name]
            mean_D = old_VD.double().mean(0).to(old_VD.dtype)
            made[name] = torch.cat([old_VD, mean_D.expand(vocabulary - len(old_VD), -1)])
    return made


def _content(token: Any) -> str:
    """A token as tokenizer_config.json writes it: its text, or a form with that inside; empty where there is none."""
    return (token.get("content") or "") if isinstance(token, dict) else token if isinstance(token, str) else ""


def _json(folder: Path, name: str) -> list[tuple[str, Any]]:
    file = folder / f"{name}.json"
    return [*json.loads(file.read_text()).items()] if file.is_file() else []

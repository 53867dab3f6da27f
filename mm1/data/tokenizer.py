"""Text <-> ids, and the special tokens, which no text can be encoded to."""

import hashlib
import json
import re
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Encoding
from tokenizers import Tokenizer as HFTokenizer

from mm1.config.sample import SAMPLE
from mm1.data.chat_format import TEMPLATE
from mm1.data.chat_template import ChatTemplate, Turns

MARKS = ("pad", "begin", "end", "image", "user", "assistant")
"""Every special token that mm1 uses; `<|NAME|>` in the tokenizer's file."""


class Tokenizer:
    """A `tokenizers` tokenizer with mm1's special tokens, the marks.

    `marks` maps each of `MARKS` to the id of the token of that name, or of the token that an imported model uses for
    it, as the file's post-processor says. `begin` are the tokens that every document begins with; empty if an imported
    model has none. `ends` are all tokens that end an answer. `fingerprint` names the tokenizer in stores and runs.
    `template` is an imported model's own chat template.

    Raises:
        ValueError: the file is not a tokenizer or lacks one of the marks.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.is_dir():
            self.path = self.path / "tokenizer.json"
        if not self.path.is_file():
            raise ValueError(f"no tokenizer at {self.path}; expected a tokenizer.json or a folder with one")
        data = self.path.read_bytes()
        try:
            self._inner = HFTokenizer.from_buffer(data)
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"{self.path} is not a tokenizer.json: {error}") from error
        self._inner.encode_special_tokens = True  # "<|end|>" typed by a user stays text
        self._inner.no_truncation()  # what the file says of both is how it was last called, by whoever saved it
        self._inner.no_padding()
        self.fingerprint = hashlib.sha256(data).hexdigest()[:12]
        self.vocabulary = max(self._inner.get_vocab().values()) + 1  # ids may have holes
        self.template: ChatTemplate | None = None
        self._indicators: dict[str, list[int]] = {"": []}
        ids = own_marks(json.loads(data))
        for name in MARKS:
            if name not in ids:
                id_ = self._inner.token_to_id(f"<|{name}|>")
                if id_ is None:
                    raise ValueError(f"{self.path} has no token <|{name}|>; it must have all of {MARKS}")
                ids[name] = [id_]
        self.marks = {name: mark_ids[0] for name, mark_ids in ids.items() if mark_ids}
        self.begin, self.ends = ids["begin"], frozenset(ids["end"])

    def __reduce__(self):  # a worker process reads the file itself
        return _restored, (self.path, self.template.source if self.template is not None else "")

    @property
    def image(self) -> int:
        """The image token: the id at every position that holds an image feature."""
        return self.marks["image"]

    @property
    def end(self) -> int:
        return self.marks["end"]

    @cached_property
    def special(self) -> frozenset[int]:
        """The ids of special tokens, which stand in no text."""
        return frozenset(id_ for id_, token in self._inner.get_added_tokens_decoder().items() if token.special)

    def encode(self, text: str) -> list[int]:
        return self._inner.encode(text, add_special_tokens=False).ids

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, computed on all cores."""
        return [encoding.ids for encoding in self._inner.encode_batch_fast(texts, add_special_tokens=False)]

    def indicator(self, text: str) -> list[int]:
        """The ids of a text that a tiling puts around tiles; names of special tokens in it are those tokens."""
        if text not in self._indicators:
            self._indicators[text] = self._with_special(text).ids
        return self._indicators[text]

    def conversation(self, turns: Turns) -> list[int]:
        """The ids of a conversation as `template` writes it, with one image token per picture, open for an answer.

        The template's own text may contain special tokens. In the turns, a zero-width space breaks the names of special
        tokens, so that they stay text.
        """
        assert self.template is not None
        return self._with_special(self.template(self._safe(turns))).ids

    def answered(self, turns: Turns) -> tuple[list[int], list[bool]]:
        """The ids of a whole conversation in the same form, and which of them an answer or its end is made of.

        Raises:
            ValueError: the template cannot write it.
        """
        assert self.template is not None
        text, extents = self.template.answered(self._safe(turns))
        encoding, train = self._with_special(text), []
        for start, stop in encoding.offsets:
            train.append(any(start < last and stop > first for first, last in extents))
        return encoding.ids, train

    def _safe(self, turns: Turns) -> Turns:
        """The turns without names of special tokens."""
        special = [token.content for token in self._inner.get_added_tokens_decoder().values() if token.special]
        pattern = re.compile("|".join(re.escape(name) for name in sorted(special, key=len, reverse=True)))
        return [turn | {"content": [_harmless(piece, pattern) for piece in turn["content"]]} for turn in turns]

    def _with_special(self, text: str) -> Encoding:
        """The tokens of a trusted text, in which names of special tokens are those tokens."""
        self._inner.encode_special_tokens = False
        try:
            return self._inner.encode(text, add_special_tokens=False)
        finally:
            self._inner.encode_special_tokens = True

    def clash(self, other: "Tokenizer") -> str | None:
        """A token that has another id in `other`; None if all that both have are the same."""
        ours = self._inner.get_vocab()
        return next((token for token, id_ in other._inner.get_vocab().items() if ours.get(token, id_) != id_), None)

    def decode(self, ids: list[int], *, special: bool = False) -> str:
        """The text of `ids`, without special tokens unless they are asked for."""
        return self._inner.decode(list(ids), skip_special_tokens=not special)

    def symbol(self, token: int) -> str:
        """The text of one token, or its name if it is a mark: for people to look at."""
        for name, mark in self.marks.items():
            if mark == token:
                return f"<|{name}|>"
        return self._inner.decode([token], skip_special_tokens=False)

    def spellings(self, ids: list[int]) -> list[str]:
        """How the tokens are written in the file, where most tokenizers write a space as another sign."""
        return [self._inner.id_to_token(id_) or "" for id_ in ids]

    def spelling(self, mark: str) -> str | None:
        """The name of a mark's token in the file; None for a `begin` that the tokenizer doesn't have."""
        return self._inner.id_to_token(self.marks[mark]) if mark in self.marks else None

    @cached_property
    def breaks(self) -> np.ndarray:
        """How good it is to cut a document right after each token: 2 after a line, 1 after a sentence, else 0."""
        quality = np.zeros(self.vocabulary, np.int8)
        for token in range(self.vocabulary):
            text = self._inner.decode([token], skip_special_tokens=False)
            if text.endswith("\n"):
                quality[token] = 2
            elif text.rstrip().endswith((".", "!", "?")):
                quality[token] = 1
        return quality


def own_marks(tokenizer: dict) -> dict[str, list[int]]:
    """For each mark the ids that an imported model's tokenizer.json uses for it.

    They are in its post-processor, the part of the file that names the tokens around a text.
    """
    named = (tokenizer.get("post_processor") or {}).get("special_tokens", {})
    return {name: named[f"<|{name}|>"]["ids"] for name in MARKS if f"<|{name}|>" in named}


def _harmless(piece: dict[str, str], special: re.Pattern[str]) -> dict[str, str]:
    if piece["type"] != "text":
        return piece
    return piece | {"text": special.sub(lambda match: match[0][0] + "\u200b" + match[0][1:], piece["text"])}


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer `name`: the sample's if that is `sample`, else the one in this file or folder.

    It has the chat template that stands beside its file, as in the folder of an imported run.
    """
    tokenizer = Tokenizer(SAMPLE if name == "sample" else name)
    template = tokenizer.path.with_name(TEMPLATE)
    return _restored(tokenizer.path, template.read_text()) if template.is_file() else tokenizer


def _restored(path: Path, template: str) -> Tokenizer:
    tokenizer = Tokenizer(path)
    if template:
        tokenizer.template = ChatTemplate(template)
    return tokenizer

"""Text <-> ids, and the special tokens, which no text can spell."""

import hashlib
import json
import re
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as HFTokenizer

from mm1.data.chat_template import ChatTemplate, Turns
from mm1.data.store import SAMPLE

MARKS = ("pad", "begin", "end", "image", "user", "assistant")
"""Every special token the project uses; `<|NAME|>` in the tokenizer's file."""


class Tokenizer:
    """A `tokenizers` tokenizer with the project's marks.

    `marks` maps each of `MARKS` to its id: of the token of that name, or of the one that an imported model has for it,
    as the file's post-processor says. Some of those begin no text with a token: then `begin`, which every document
    begins with, is empty. `ends` are all that end an answer. `fingerprint` names the tokenizer in stores and runs.
    `template` is the chat form of an imported model that has one of its own.

    Raises:
        ValueError: the file is no tokenizer or lacks one of the marks.
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
        self.fingerprint = hashlib.sha256(data).hexdigest()[:12]
        self.vocabulary = self._inner.get_vocab_size()
        self.template: ChatTemplate | None = None
        ids = own_marks(json.loads(data))
        for name in MARKS:
            if name not in ids:
                number = self._inner.token_to_id(f"<|{name}|>")
                if number is None:
                    raise ValueError(f"{self.path} has no token <|{name}|>; it must have all of {MARKS}")
                ids[name] = [number]
        self.marks = {name: numbers[0] for name, numbers in ids.items() if numbers}
        self.begin, self.ends = ids["begin"], frozenset(ids["end"])

    def __reduce__(self):  # a worker process reads its own
        return Tokenizer, (self.path,)

    @property
    def image(self) -> int:
        """The id that stands at every place of an image."""
        return self.marks["image"]

    @property
    def end(self) -> int:
        return self.marks["end"]

    def encode(self, text: str) -> list[int]:
        return self._inner.encode(text, add_special_tokens=False).ids

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text; long lists are shared out over the cores."""
        return [found.ids for found in self._inner.encode_batch_fast(texts, add_special_tokens=False)]

    def conversation(self, turns: Turns) -> list[int]:
        """The ids of a conversation that `template` writes, an image token for each picture, open for an answer.

        What the template writes may hold special tokens; such a token in somebody's turn is broken by a space of no
        width, so that it stays text.
        """
        assert self.template is not None
        special = [token.content for token in self._inner.get_added_tokens_decoder().values() if token.special]
        spelled = re.compile("|".join(re.escape(name) for name in sorted(special, key=len, reverse=True)))
        safe = [turn | {"content": [_harmless(piece, spelled) for piece in turn["content"]]} for turn in turns]
        self._inner.encode_special_tokens = False
        try:
            return self._inner.encode(self.template(safe), add_special_tokens=False).ids
        finally:
            self._inner.encode_special_tokens = True

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`; special tokens are left out."""
        return self._inner.decode(list(ids), skip_special_tokens=True)

    def symbol(self, number: int) -> str:
        """What one id stands for, special tokens by their name: for people to look at."""
        for name, mark in self.marks.items():
            if mark == number:
                return f"<|{name}|>"
        return self._inner.decode([number], skip_special_tokens=False)

    def spelling(self, mark: str) -> str | None:
        """The name that a mark's token has in the file; None of a `begin` that is not there."""
        return self._inner.id_to_token(self.marks[mark]) if mark in self.marks else None

    @cached_property
    def breaks(self) -> np.ndarray:
        """How good it is to cut a document right after each token: 2 after a line, 1 after a sentence, else 0."""
        quality = np.zeros(self.vocabulary, np.int8)
        for number in range(self.vocabulary):
            text = self._inner.decode([number], skip_special_tokens=False)
            if text.endswith("\n"):
                quality[number] = 2
            elif text.rstrip().endswith((".", "!", "?")):
                quality[number] = 1
        return quality


def own_marks(tokenizer: dict) -> dict[str, list[int]]:
    """The ids of a tokenizer.json that stand for our marks in an imported model, by the mark.

    They are in the post-processor, whose part is to say which tokens stand around a text.
    """
    named = (tokenizer.get("post_processor") or {}).get("special_tokens", {})
    return {name: named[f"<|{name}|>"]["ids"] for name in MARKS if f"<|{name}|>" in named}


def _harmless(piece: dict[str, str], special: re.Pattern[str]) -> dict[str, str]:
    if piece["type"] != "text":
        return piece
    return piece | {"text": special.sub(lambda found: found[0][0] + "\u200b" + found[0][1:], piece["text"])}


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer `name`: `sample` for the shipped one, else a file or folder."""
    return Tokenizer(SAMPLE if name == "sample" else name)

"""Text <-> ids, and the special tokens, which no text can spell."""

import hashlib
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as HFTokenizer

from mm1.data.store import SAMPLE

MARKS = ("pad", "begin", "end", "image", "user", "assistant")
"""Every special token the project uses; `<|NAME|>` in the tokenizer's file."""


class Tokenizer:
    """A `tokenizers` tokenizer with the project's marks.

    `marks` maps each of `MARKS` to its id. `fingerprint` names the tokenizer in stores and runs.

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
        self.marks: dict[str, int] = {}
        for name in MARKS:
            number = self._inner.token_to_id(f"<|{name}|>")
            if number is None:
                raise ValueError(f"{self.path} has no token <|{name}|>; it must have all of {MARKS}")
            self.marks[name] = number

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

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`; special tokens are left out."""
        return self._inner.decode(list(ids), skip_special_tokens=True)

    def symbol(self, number: int) -> str:
        """What one id stands for, special tokens by their name: for people to look at."""
        for name, mark in self.marks.items():
            if mark == number:
                return f"<|{name}|>"
        return self._inner.decode([number], skip_special_tokens=False)

    def breaks(self) -> np.ndarray:
        """How good a place to cut is just after each token: 2 a line's end, 1 a sentence's, 0 else."""
        quality = np.zeros(self.vocabulary, np.int8)
        for number in range(self.vocabulary):
            text = self._inner.decode([number], skip_special_tokens=False)
            if text.endswith("\n"):
                quality[number] = 2
            elif text.rstrip().endswith((".", "!", "?")):
                quality[number] = 1
        return quality


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer `name`: `sample` for the shipped one, else a file or folder."""
    return Tokenizer(SAMPLE if name == "sample" else name)

"""What a run's folder records of its text: the tokenizer and the chat format.

With them a copy of the folder can be used where neither the training stores nor the tokenizer's original file are.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mm1.config.base import ConfigError
from mm1.data.chat_format import TEMPLATE, is_chat
from mm1.data.chat_template import ChatTemplate
from mm1.data.store import Store
from mm1.data.tokenizer import Tokenizer
from mm1.disk import write_whole

TOKENIZER = "tokenizer.json"
CHAT = "chat.json"

ChatFormat = Literal["none", "marks", "template"]
"""How a run reads a chat: it learned none, with our marks (`data/chat_format.py`), or as its own template writes it."""


@dataclass(frozen=True, slots=True)
class RecordedText:
    """The tokenizer of a run, with the run's chat template if it has one; what the run learned: chats, and images."""

    tokenizer: Tokenizer
    chat_format: ChatFormat
    images: bool = True

    @property
    def chats(self) -> bool:
        return self.chat_format != "none"


def chat_format_of(stores: Iterable[Store]) -> ChatFormat:
    """The chat format that a run learns from `stores`: the first document of each tells.

    Raises:
        StoreError: a store cannot be read.
    """
    return "marks" if any(is_chat(store.take([0])[0]) for store in stores) else "none"


def record_text(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    chat_format: ChatFormat = "none",
    template: str = "",
    images: bool = True,
) -> None:
    """Write the tokenizer and the chat format to a run's folder; a `template` is a chat format of its own.

    `images` says whether the run's vision was trained, by this run or by the one that it starts from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / TOKENIZER, tokenizer.path.read_bytes())
    if template:
        write_whole(folder / TEMPLATE, template)
    learned = {"chat_format": "template" if template else chat_format, "images": images}
    write_whole(folder / CHAT, json.dumps(learned) + "\n")


def recorded_text(folder: Path) -> RecordedText:
    """What `record_text` wrote to a run's folder.

    Raises:
        ConfigError: a file of it is missing.
    """
    for name in (TOKENIZER, CHAT):
        if not (folder / name).is_file():
            raise ConfigError(
                f"{folder} has no {name}, which training and mm1 import write; copy the whole folder of the run, or "
                "train it again if an earlier version of mm1 made it"
            )
    learned = json.loads((folder / CHAT).read_text())
    # earlier versions recorded no `images`
    text = RecordedText(Tokenizer(folder / TOKENIZER), learned["chat_format"], learned.get("images", True))
    if text.chat_format == "template":
        text.tokenizer.template = ChatTemplate((folder / TEMPLATE).read_text())
    return text


def check_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Check that a run that goes on in `folder` has the tokenizer it was started with.

    Raises:
        ConfigError: it has another one.
    """
    recorded = recorded_text(folder).tokenizer.fingerprint
    if recorded != tokenizer.fingerprint:
        raise ConfigError(
            f"{folder} was started with a tokenizer of fingerprint {recorded}, but {tokenizer.path} has fingerprint "
            f"{tokenizer.fingerprint}; use the first one, which is {folder / TOKENIZER}, or another --to folder"
        )

"""A trained run's answer to one question about pictures."""

from collections.abc import Sequence
from pathlib import Path

from mm1.checkpoint import Loaded
from mm1.config.base import missing
from mm1.data.chat_format import prompt
from mm1.data.image import ImageError, load
from mm1.document import Document, Image, Piece, Text
from mm1.generate.writer import Writer


def answer(loaded: Loaded, question: str, *, images: Sequence[Path], tokens: int) -> str:
    """The model's answer to `question` about `images`; a run that learned no chats continues the text instead.

    Raises:
        ValueError: an image file is missing or cannot be decoded, or the run holds a language model.
    """
    if images and not loaded.sees:
        raise ValueError(f"{loaded.folder} holds a language model, which takes no pictures; ask it without --image")
    pieces: list[Piece] = [Image(_read(path)) for path in images]
    pieces.append(Text(question, train=False))
    document = prompt(pieces) if loaded.chats else Document(tuple(pieces))
    return continue_document(loaded, document, tokens=tokens)


def continue_document(loaded: Loaded, document: Document, *, tokens: int) -> str:
    """The model's greedy continuation of an open document, at most `tokens` long."""
    (text,) = Writer(loaded.model, loaded.tokenizer, rows=1).write([document], max_tokens=tokens)
    return text.strip()


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(missing(path, "image"))
    data = path.read_bytes()
    try:
        load(data, 8)
    except ImageError as error:
        raise ValueError(f"{path} is {error}") from None
    return data

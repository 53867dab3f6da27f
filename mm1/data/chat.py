"""A conversation as a Document that trains only on the answers.

A chat in a store holds no markers: text that is trained is the assistant's, everything else is the
user's (`metadata["form"] == "chat"`). The markers are put in here, for training and serving alike:

    <|begin|> <|user|> question and pictures <|assistant|> answer <|end|> <|user|> ...

The assistant learns its answer and the `<|end|>` after it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mm1.document import Document, Image, Mark, Piece, Text

TEMPLATE = "chat_template.jinja"
"""The file with the chat template of an imported run."""


def is_chat(document: Document) -> bool:
    return document.metadata.get("form") == "chat"


def marked(document: Document) -> Document:
    """The chat with its role marks in place, ready to encode."""
    pieces: list[Piece] = []
    speaker = ""
    for piece in document.pieces:
        turn = "assistant" if isinstance(piece, Text) and piece.train else "user"
        if turn != speaker:
            if speaker == "assistant":
                pieces.append(Mark("end", train=True))
            pieces.append(Mark(turn))
            speaker = turn
        pieces.append(piece)
    if speaker == "assistant":
        pieces.append(Mark("end", train=True))
    return replace(document, pieces=tuple(pieces))


def prompt(pieces: list[Piece]) -> Document:
    """One user turn and the opened turn of the assistant: what a model is asked to continue."""
    read = [replace(piece, train=False) if isinstance(piece, Text) else piece for piece in pieces]
    return Document((Mark("user"), *read, Mark("assistant")))


def messages(document: Document, *, pictures: Callable[[Image], dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """A prompt as chat messages, their contents lists of pieces; one without marks is a single message of the user."""
    turns: list[dict[str, Any]] = []
    for piece in document.pieces:
        if isinstance(piece, Mark):
            if piece.name != "end":
                turns.append({"role": piece.name, "content": []})
            continue
        if not turns:
            turns.append({"role": "user", "content": []})
        if isinstance(piece, Image):
            shown = pictures(piece) if pictures is not None else {"type": "image"}
            turns[-1]["content"].append(shown)
        else:
            turns[-1]["content"].append({"type": "text", "text": piece.text})
    return [turn for turn in turns if turn["content"]]

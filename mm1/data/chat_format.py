"""A conversation as a Document that trains only on the answers.

A chat in a store (`metadata["form"] == "chat"`) has no marks of its roles: trained text is the assistant's, everything
else is the user's. They are added here, for training and serving alike:

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
    """Whether the document is a stored chat."""
    return document.metadata.get("form") == "chat"


def with_roles(document: Document) -> Document:
    """A stored chat with the marks of its roles, ready to encode."""
    pieces: list[Piece] = []
    role = ""
    for piece in document.pieces:
        new_role = "assistant" if isinstance(piece, Text) and piece.train else "user"
        if new_role != role:
            if role == "assistant":
                pieces.append(Mark("end", train=True))
            pieces.append(Mark(new_role))
            role = new_role
        pieces.append(piece)
    if role == "assistant":
        pieces.append(Mark("end", train=True))
    return replace(document, pieces=tuple(pieces))


def prompt(pieces: list[Piece]) -> Document:
    """A turn of the user and the opened turn of the assistant, for a model to continue."""
    untrained = [replace(piece, train=False) if isinstance(piece, Text) else piece for piece in pieces]
    return Document((Mark("user"), *untrained, Mark("assistant")))


def messages(document: Document, *, pictures: Callable[[Image], dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """A prompt as chat messages, each with a role and a list of contents; without marks, one message of the user.

    `pictures` gives the content of an image; without it, that is `{"type": "image"}`.
    """
    turns: list[dict[str, Any]] = []
    for piece in document.pieces:
        if isinstance(piece, Mark):
            if piece.name != "end":
                turns.append({"role": piece.name, "content": []})
            continue
        if not turns:
            turns.append({"role": "user", "content": []})
        if isinstance(piece, Image):
            turns[-1]["content"].append(pictures(piece) if pictures is not None else {"type": "image"})
        else:
            turns[-1]["content"].append({"type": "text", "text": piece.text})
    return [turn for turn in turns if turn["content"]]

"""A conversation as a Document that trains only on the answers.

A chat in a store (`metadata["form"] == "chat"`) has no marks of its roles: trained text is the assistant's, everything
else is the user's, but as many pieces at its beginning as `metadata["system_pieces"]` says are the system's. The marks
are added here, for training and serving alike:

    <|begin|> <|user|> question and pictures <|assistant|> answer <|end|> <|user|> ...

The assistant learns its answer and the `<|end|>` after it. This form has no mark of the system: its text stands before
the first question, in the user's turn. Chat templates of published models mostly have a turn for it.
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


def with_roles(document: Document, *, system: bool = False) -> Document:
    """A stored chat with the marks of its roles, ready to encode; with `system` also that of the system, if it has one.

    The line between the texts of the system and the user is left out where they are turns of their own.
    """
    pieces: list[Piece] = []
    role = ""
    system_pieces = int(document.metadata.get("system_pieces", 0)) if system else 0
    for number, piece in enumerate(document.pieces):
        new_role = "assistant" if isinstance(piece, Text) and piece.train else "user"
        if number < system_pieces:
            new_role = "system"
            if number == system_pieces - 1 and isinstance(piece, Text):
                piece = replace(piece, text=piece.text.removesuffix("\n"))
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

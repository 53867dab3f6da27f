"""Requests as prompts: conversations and lists of texts and pictures become Documents, those become tokens."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter

from mm1.checkpoint import Loaded
from mm1.data.image import ImageError
from mm1.document import Document, Encoded, Image, Mark, Piece, Text, Tile
from mm1.generate.document_prompt import DocumentPrompts, tile_names
from mm1.generate.prompt import Features, Picture, Prompt
from mm1.serve.errors import invalid
from mm1.serve.limits import Limits
from mm1.serve.media import unreadable
from mm1.serve.pixels import Pixels
from mm1.serve.protocol import ImagePart, Message, Part

CHARACTERS_PER_TOKEN = 64
"""Longer texts than this many characters for each position are refused before they are tokenized."""

Pictures = dict[str, Image]
"""The pictures of a request by their address."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Makes prompts for one model."""

    loaded: Loaded
    limits: Limits
    features: Features
    prompts: DocumentPrompts
    pixels: Pixels
    lock: threading.Lock  # the tokenizer writes chat templates in a state of its own

    @classmethod
    def of(cls, loaded: Loaded, limits: Limits, features: Features) -> "Reader":
        """The reader of a loaded run. Pictures whose features are kept are not decoded again."""
        prompts = DocumentPrompts(loaded.model.config, loaded.tokenizer)
        pixels = Pixels(prompts.tile.size, most=limits.max_pixel_bytes)
        return cls(loaded, limits, features, prompts, pixels, threading.Lock())

    def prompt(self, document: Document, *, salt: str = "") -> Prompt:
        """The document as a prompt, its pictures decoded.

        Raises:
            ApiError: it is too long, or a picture cannot be decoded.
        """
        characters, most = len(document.text), CHARACTERS_PER_TOKEN * self.limits.max_length
        if characters > most:
            message = f"the prompt has {characters:,} characters; this server reads {most:,}, and takes "
            raise invalid(f"{message}{self.limits.max_length:,} tokens with the answer", code="too_long")
        try:
            with self.lock:
                encoded = self.prompts.encode(document)
        except ValueError:
            raise invalid(
                "the model's chat template does not take this conversation; roles must alternate, beginning with the "
                "user's, and some templates take no system message or no pictures",
                "messages",
            ) from None
        self.check_length(len(encoded.tokens))
        return self._with_pixels(encoded, salt=salt)

    def of_tokens(self, tokens: Sequence[int]) -> Prompt:
        """Token ids as a prompt.

        Raises:
            ApiError: an id is none of the model's, or the prompt is too long.
        """
        tokenizer = self.loaded.tokenizer
        wrong = next((token for token in tokens if token >= tokenizer.vocabulary or token == tokenizer.image), None)
        if wrong is not None:
            raise invalid(
                f"{wrong} is no token of text of this model; there are {tokenizer.vocabulary:,}, and pictures are "
                "sent as content parts",
                "prompt",
            )
        self.check_length(len(tokens))
        return Prompt(list(tokens))

    def check_length(self, positions: int) -> None:
        """Raise if a prompt of so many positions has no room for a token after it."""
        if positions >= self.limits.max_length:
            raise invalid(
                f"the prompt has {positions:,} tokens, and this server takes {self.limits.max_length:,} with the "
                "answer; shorten it or send fewer or smaller pictures",
                code="context_length_exceeded",
            )

    def _with_pixels(self, encoded: Encoded, *, salt: str) -> Prompt:
        plain = self.prompts.prompt(encoded)
        pictures: list[Picture] = []
        for _, group in groupby(zip(encoded.pictures, encoded.images, strict=True), key=itemgetter(0)):
            tiles = tuple(tile for _, tile in group)
            pictures += self._decoded(tiles, salt=salt)
        return replace(plain, images=pictures)

    def _decoded(self, tiles: tuple[Tile, ...], *, salt: str) -> list[Picture]:
        names = [salt + name for name in tile_names(tiles)]
        try:
            return self.pixels.pictures(tiles, names, known=all(name in self.features for name in names))
        except ImageError:
            raise unreadable() from None


def chat_document(messages: Sequence[Message], pictures: Pictures, loaded: Loaded) -> Document:
    """A conversation as a Document that is open for the assistant's answer.

    A run that learned no chats takes a single message of the user, and continues its text.

    Raises:
        ApiError: the conversation is none that the model can continue.
    """
    turns = [
        (message.role, _pieces(message.content, pictures, f"messages.{n}.content"))
        for n, message in enumerate(messages)
    ]
    for number, (role, pieces) in enumerate(turns):
        if role == "assistant" and any(isinstance(piece, Image) for piece in pieces):
            raise invalid("the assistant's turns have no pictures", f"messages.{number}.content")
    if turns[-1][0] != "user":
        raise invalid("the last message must be the user's", "messages")
    if not loaded.chats:
        if len(turns) > 1:
            raise invalid(
                "this model learned no conversations: send one message of the user, whose text it continues, or use "
                "/v1/completions",
                "messages",
            )
        return Document(tuple(turns[0][1]))
    if loaded.tokenizer.template is not None:
        written = [piece for role, pieces in turns for piece in (Mark(_ROLES.get(role, role)), *pieces)]
        return Document((*written, Mark("assistant")))
    return Document((*_own_format(turns), Mark("assistant")))


_ROLES = {"developer": "system"}


def _own_format(turns: Sequence[tuple[str, list[Piece]]]) -> list[Piece]:
    """The turns with mm1's marks. There is none for a system message, so its text stands before the next question."""
    pieces: list[Piece] = []
    current = ""
    before: list[Piece] = []
    for role, content in turns:
        if role in ("system", "developer"):
            before += _with_line(content)
            continue
        if role != current:
            if current == "assistant":
                pieces.append(Mark("end"))
            pieces.append(Mark(role))
            current = role
        pieces += [*(before if role == "user" else ()), *content]
        before = [] if role == "user" else before
    return pieces


def _with_line(pieces: list[Piece]) -> list[Piece]:
    """The pieces with a line after them, written as `mm1 prepare` writes it between a system's text and the user's."""
    last = pieces[-1] if pieces else None
    if not isinstance(last, Text):
        return [*pieces, Text("\n", train=False)]
    return [*pieces[:-1], replace(last, text=last.text.removesuffix("\n") + "\n")]


def completion_document(parts: Sequence[Part] | str, pictures: Pictures) -> Document:
    """Texts and pictures as a Document that is open at its end.

    Raises:
        ApiError: there is nothing in it.
    """
    return Document(tuple(_pieces(parts, pictures, "prompt", empty=True)))


def _pieces(
    content: str | Sequence[Part] | None, pictures: Pictures, param: str, *, empty: bool = False
) -> list[Piece]:
    if content is None:
        content = ""
    if isinstance(content, str):
        pieces: list[Piece] = [Text(content, train=False)] if content else []
    else:
        pieces = [
            pictures[part.image_url.url] if isinstance(part, ImagePart) else Text(part.text, train=False)
            for part in content
            if isinstance(part, ImagePart) or part.text
        ]
    if not pieces and not empty:
        raise invalid(f"{param} is empty", param)
    return pieces


def addresses(contents: Sequence[str | Sequence[Part] | None]) -> list[str]:
    """The addresses of all pictures in some contents, in order, also those that occur twice."""
    parts = [part for content in contents if content is not None and not isinstance(content, str) for part in content]
    return [part.image_url.url for part in parts if isinstance(part, ImagePart)]

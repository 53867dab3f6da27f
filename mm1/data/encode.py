"""Document -> Encoded: token ids, loss mask and tiles; and the cutting of long documents into spans."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np

from mm1.data.chat_format import is_chat, messages, with_roles
from mm1.data.tiles import TiledPicture, TileSpec, tiled
from mm1.data.tokenizer import Tokenizer
from mm1.document import Document, Encoded, Image, Mark, Text


def encode(document: Document, tokenizer: Tokenizer, *, tile: TileSpec, end: bool = True) -> Encoded:
    """The document as token ids: `<|begin|>`, its pieces, `<|end|>`.

    A picture takes `tile.tokens` positions for each of its tiles, and those of the text that the tiling puts around
    them, which is never trained. `end=False` leaves the document open, as a prompt is.
    `<|end|>` is trained only after trained text. A conversation to be continued is written by the tokenizer's own
    template if it has one.
    """
    if not end and tokenizer.template is not None and any(isinstance(piece, Mark) for piece in document.pieces):
        return _by_template(document, tokenizer, tile)
    return encode_many([document], tokenizer, tile=tile, end=end)[0]


def encode_many(
    documents: Sequence[Document], tokenizer: Tokenizer, *, tile: TileSpec, end: bool = True
) -> list[Encoded]:
    """Each document as `encode` gives it; all texts without ids are tokenized in one call, on all cores."""
    documents = [with_roles(document) if is_chat(document) else document for document in documents]
    texts = [piece for document in documents for piece in document.pieces if isinstance(piece, Text)]
    ids = iter(tokenizer.encode_many([text.text for text in texts if text.ids is None]))
    return [_assemble(document, ids, tokenizer, tile=tile, end=end) for document in documents]


def _assemble(
    document: Document, ids: Iterator[list[int]], tokenizer: Tokenizer, *, tile: TileSpec, end: bool
) -> Encoded:
    """One document encoded; `ids` gives the tokens of the next text that has none."""
    marks, teaches = tokenizer.marks, _teaches(document)
    tokens, train = [*tokenizer.begin], [False] * len(tokenizer.begin)
    pictures = tiled(document, tile)
    extents: list[tuple[int, int]] = []
    for piece in document.pieces:
        if isinstance(piece, Image):
            added = _picture_tokens(pictures[len(extents)], tokenizer, tile)
            extents.append((len(tokens), len(tokens) + len(added)))
            tokens += added
            train += [False] * len(added)
        elif isinstance(piece, Mark):
            tokens.append(marks[piece.name])
            train.append(piece.train)
        else:
            text_ids = next(ids) if piece.ids is None else piece.ids
            tokens += text_ids
            train += [piece.train and teaches] * len(text_ids)
    if end and tokens[-1:] != [marks["end"]]:
        tokens.append(marks["end"])
        train.append(teaches)
    return _encoded(tokens, train, pictures, extents)


def _by_template(document: Document, tokenizer: Tokenizer, tile: TileSpec) -> Encoded:
    """The conversation as the tokenizer's template writes it, with the tokens of each picture for its image token."""
    pictures = tiled(document, tile)
    extents: list[tuple[int, int]] = []
    tokens: list[int] = []
    for token in tokenizer.conversation(messages(document)):
        if token == tokenizer.image:
            added = _picture_tokens(pictures[len(extents)], tokenizer, tile)
            extents.append((len(tokens), len(tokens) + len(added)))
            tokens += added
        else:
            tokens.append(token)
    return _encoded(tokens, [False] * len(tokens), pictures, extents)


def _picture_tokens(picture: TiledPicture, tokenizer: Tokenizer, tile: TileSpec) -> list[int]:
    """The image tokens of a picture's tiles with the tokens of the text around them."""
    tokens: list[int] = []
    for text in picture.texts[:-1]:
        tokens += [*tokenizer.indicator(text), *[tokenizer.image] * tile.tokens]
    return [*tokens, *tokenizer.indicator(picture.texts[-1])]


def _encoded(
    tokens: list[int], train: list[bool], pictures: Sequence[TiledPicture], extents: Sequence[tuple[int, int]]
) -> Encoded:
    images = tuple(one for picture in pictures for one in picture.tiles)
    numbers = tuple(number for number, picture in enumerate(pictures) for _ in picture.tiles)
    return Encoded(np.array(tokens, np.int32), np.array(train, bool), images, numbers, tuple(extents))


def _teaches(document: Document) -> bool:
    """Whether there is anything to learn: an empty caption must not teach that pictures need none."""
    return any(isinstance(piece, Text) and piece.train and piece.text.strip() for piece in document.pieces)


@dataclass(frozen=True, slots=True)
class Span:
    """Positions [start, stop) of an encoded document, with the number of tiles in them."""

    start: int
    stop: int
    images: int


@dataclass(frozen=True, slots=True)
class Cutter:
    """Cuts documents into spans that fit a sequence of `sequence_length` positions and `max_images` tiles."""

    tokenizer: Tokenizer
    tile: TileSpec
    sequence_length: int
    max_images: int

    def cut(self, encoded: Encoded) -> list[Span]:
        """The spans of a document, each fitting a sequence; one span if the whole document fits.

        A cut falls after a line, else a sentence, else a word piece, within the last 1/32 of a sequence. It never falls
        inside a tile, nor inside a picture that fits a sequence: between its tiles or in the text around them. No
        position and no tile is lost.
        """
        seen = np.concatenate([[0], np.cumsum(encoded.tokens == self.tokenizer.image)])  # image tokens before each
        spans, start = [], 0
        while start < len(encoded.tokens):
            most_seen = seen[start] + self.max_images * self.tile.tokens
            stop = min(start + self.sequence_length, int(np.searchsorted(seen, most_seen, side="right")) - 1)
            if stop < len(encoded.tokens):
                stop = self._best_stop(encoded, seen, start=start, stop=stop)
            spans.append(Span(start, stop, int(seen[stop] - seen[start]) // self.tile.tokens))
            start = stop
        return spans

    def _best_stop(self, encoded: Encoded, seen: np.ndarray, *, start: int, stop: int) -> int:
        """The best position to cut at, at most `stop`."""
        number = bisect_left(encoded.extents, stop, key=itemgetter(0)) - 1  # of the last picture that starts before
        if number >= 0 and stop < encoded.extents[number][1]:
            first = encoded.extents[number][0]
            if first > start:
                return first  # the picture moves to the next span, whole
            return stop - int(seen[stop]) % self.tile.tokens  # it fits no sequence: its tiles stay whole
        window = max(1, (stop - start) // 32)
        quality = self.tokenizer.breaks[encoded.tokens[stop - window : stop]]
        for first, end in encoded.extents[number::-1] if number >= 0 else ():
            if end <= stop - window:
                break
            # a line that ends inside of a picture is no place to cut
            quality[max(0, first - (stop - window)) : max(0, end - 1 - (stop - window))] = 0
        best = int(quality.max())
        if best == 0:
            return stop
        return stop - window + int(np.flatnonzero(quality == best)[-1]) + 1

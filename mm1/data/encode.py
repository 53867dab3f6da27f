"""Document -> Encoded: token ids, loss mask and tiles; and the cutting of long documents into spans."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mm1.data.chat_format import is_chat, messages, with_roles
from mm1.data.tiles import TileSpec, tiled
from mm1.data.tokenizer import Tokenizer
from mm1.document import Document, Encoded, Image, Mark, Text


def encode(document: Document, tokenizer: Tokenizer, *, tile: TileSpec, end: bool = True) -> Encoded:
    """The document as token ids: `<|begin|>`, its pieces, `<|end|>`.

    A picture takes `tile.tokens` positions for each of its tiles. `end=False` leaves the document open, as a prompt is.
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
    images: list[Image] = []
    tile_counts: list[int] = []
    for piece in document.pieces:
        if isinstance(piece, Image):
            parts = tiled(piece, tile)
            tokens += [tokenizer.image] * (tile.tokens * len(parts))
            train += [False] * (tile.tokens * len(parts))
            images += parts
            tile_counts.append(len(parts))
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
    return Encoded(np.array(tokens, np.int32), np.array(train, bool), tuple(images), _numbered(tile_counts))


def _by_template(document: Document, tokenizer: Tokenizer, tile: TileSpec) -> Encoded:
    """The conversation as the tokenizer's template writes it, with an image token for each picture."""
    pictures = [tiled(image, tile) for image in document.images]
    tile_counts = iter([len(parts) for parts in pictures])
    tokens: list[int] = []
    for token in tokenizer.conversation(messages(document)):
        tokens += [token] * (tile.tokens * next(tile_counts) if token == tokenizer.image else 1)
    images = tuple(part for parts in pictures for part in parts)
    numbers = _numbered([len(parts) for parts in pictures])
    return Encoded(np.array(tokens, np.int32), np.zeros(len(tokens), bool), images, numbers)


def _numbered(tile_counts: Sequence[int]) -> tuple[int, ...]:
    """For each tile the number of its picture."""
    return tuple(number for number, count in enumerate(tile_counts) for _ in range(count))


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
        inside a tile, nor between the tiles of a picture that fits a sequence. No position and no tile is lost.
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
        inside = int(seen[stop]) % self.tile.tokens  # tokens of a tile that the cut would split
        tile = int(seen[stop]) // self.tile.tokens  # the tile that the cut would split or stand before
        pictures = encoded.pictures
        first = pictures.index(pictures[tile]) if tile < len(pictures) else tile
        before = inside + (tile - first) * self.tile.tokens  # tokens of a picture that the cut would split
        if 0 < before < stop - start:
            return stop - before  # the picture moves to the next span, whole
        if inside or before:
            return stop - inside
        window = max(1, (stop - start) // 32)
        quality = self.tokenizer.breaks[encoded.tokens[stop - window : stop]]
        best = int(quality.max())
        if best == 0:
            return stop
        return stop - window + int(np.flatnonzero(quality == best)[-1]) + 1

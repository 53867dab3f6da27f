"""Document -> Encoded: token ids, loss mask and tiles; and the cutting of long documents into spans."""

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np

from mm1.data.chat_format import is_chat, messages, with_roles
from mm1.data.tiles import TiledPicture, tiled
from mm1.data.tokenizer import Tokenizer
from mm1.document import Document, Encoded, Image, Mark, Text
from mm1.tiling import TileSpec


def encode(document: Document, tokenizer: Tokenizer, *, tile: TileSpec, end: bool = True) -> Encoded:
    """The document as token ids: `<|begin|>`, its pieces, `<|end|>`.

    A picture takes `tile.tokens` positions for each of its tiles, and those of the text that the tiling puts around
    them, which is never trained. `end=False` leaves the document open, as a prompt is.
    `<|end|>` is trained only after trained text. A conversation is written by the tokenizer's own template if it has
    one, and of a stored chat the assistant's answers are trained, each with what ends it.
    """
    if not end and tokenizer.template is not None and any(isinstance(piece, Mark) for piece in document.pieces):
        return _by_template(document, tokenizer, tile, end=False)
    return encode_many([document], tokenizer, tile=tile, end=end)[0]


def encode_many(
    documents: Sequence[Document], tokenizer: Tokenizer, *, tile: TileSpec, end: bool = True
) -> list[Encoded]:
    """Each document as `encode` gives it; all texts without ids are tokenized in one call, on all cores."""
    if tokenizer.template is not None and any(map(is_chat, documents)):
        others = [document for document in documents if not is_chat(document)]
        rest = iter(encode_many(others, tokenizer, tile=tile, end=end))
        return [
            _by_template(document, tokenizer, tile, end=end) if is_chat(document) else next(rest)
            for document in documents
        ]
    documents = [with_roles(document) if is_chat(document) else document for document in documents]
    texts = [piece for document in documents for piece in document.pieces if isinstance(piece, Text)]
    ids = iter(tokenizer.encode_many([text.text for text in texts if text.ids is None]))
    return [_assemble(document, ids, tokenizer, tile=tile, end=end) for document in documents]


def _assemble(
    document: Document, ids: Iterator[list[int]], tokenizer: Tokenizer, *, tile: TileSpec, end: bool
) -> Encoded:
    """One document encoded; `ids` gives the tokens of the next text that has none."""
    marks, teaches = tokenizer.marks, _teaches(document)
    tokens, train = array("i", tokenizer.begin), bytearray(len(tokenizer.begin))
    pictures = tiled(document, tile)
    extents: list[tuple[int, int]] = []
    for piece in document.pieces:
        if isinstance(piece, Image):
            extents.append(_add_picture(tokens, pictures[len(extents)], tokenizer))
            train.extend(bytes(len(tokens) - len(train)))
        elif isinstance(piece, Mark):
            tokens.append(marks[piece.name])
            train.append(piece.train)
        else:
            text_ids = next(ids) if piece.ids is None else piece.ids
            tokens.extend(text_ids)
            train.extend(bytes([piece.train and teaches]) * len(text_ids))
    if end and (not tokens or tokens[-1] != marks["end"]):
        tokens.append(marks["end"])
        train.append(teaches)
    return _encoded(tokens, train, pictures, extents, tokenizer=tokenizer, tile=tile)


def _by_template(document: Document, tokenizer: Tokenizer, tile: TileSpec, *, end: bool) -> Encoded:
    """The conversation as the tokenizer's template writes it, with the tokens of each picture for its image token.

    Raises:
        ValueError: the template cannot write it, or writes another number of pictures.
    """
    if is_chat(document):
        template = tokenizer.template
        document = with_roles(document, system=template is not None and template.takes_system)
    turns, teaches = messages(document), _teaches(document)
    try:
        written, answers = tokenizer.answered(turns) if end else (tokenizer.conversation(turns), [])
    except ValueError as why:
        raise ValueError(f"chat {document.id!r}: {why}") from None
    pictures = tiled(document, tile)
    if written.count(tokenizer.image) != len(pictures):
        raise ValueError(
            f"chat {document.id!r} has {len(pictures)} pictures, but the model's chat template writes "
            f"{written.count(tokenizer.image)} image tokens"
        )
    extents: list[tuple[int, int]] = []
    tokens, train = array("i"), bytearray()
    for token, answer in zip(written, answers or [False] * len(written), strict=True):
        if token == tokenizer.image:
            extents.append(_add_picture(tokens, pictures[len(extents)], tokenizer))
        else:
            tokens.append(token)
        trained = answer and teaches and token != tokenizer.image
        train.extend(bytes([trained]) * (len(tokens) - len(train)))
    if end and not any(token in tokenizer.ends for token in tokens[-2:]):  # a line may follow the end
        tokens.append(tokenizer.end)
        train.append(teaches)
    return _encoded(tokens, train, pictures, extents, tokenizer=tokenizer, tile=tile)


def _add_picture(tokens: "array[int]", picture: TiledPicture, tokenizer: Tokenizer) -> tuple[int, int]:
    """The positions [start, stop) of a picture, whose tokens are added to `tokens`."""
    start, image = len(tokens), array("i", [tokenizer.image])
    for block in picture.blocks:
        tokens.extend(tokenizer.indicator(block.text))
        tokens.extend(image * len(block.features))
    tokens.extend(tokenizer.indicator(picture.ending))
    return start, len(tokens)


def _encoded(
    tokens: "array[int]",
    train: bytearray,
    pictures: Sequence[TiledPicture],
    extents: Sequence[tuple[int, int]],
    *,
    tokenizer: Tokenizer,
    tile: TileSpec,
) -> Encoded:
    images = tuple(one for picture in pictures for one in picture.tiles)
    numbers = tuple(number for number, picture in enumerate(pictures) for _ in picture.tiles)
    ids = np.frombuffer(tokens, np.int32)
    at_image = np.flatnonzero(ids == tokenizer.image) if pictures else np.zeros(0, np.int64)
    if tile.in_order:
        starts, features = tuple(at_image[:: tile.tokens].tolist()), None
    else:  # the tokens of a picture are spread over all of its tiles
        starts = tuple(start for (start, _), picture in zip(extents, pictures, strict=True) for _ in picture.tiles)
        features = np.zeros(len(ids), np.int32)
        features[at_image] = _features(pictures, tile)
    return Encoded(ids, np.frombuffer(train, bool), images, numbers, tuple(extents), starts, features)


def _features(pictures: Sequence[TiledPicture], tile: TileSpec) -> np.ndarray:
    """For each image token the number of its feature among those of the tiles of all pictures."""
    first, parts = 0, [np.zeros(0, np.int32)]
    for picture in pictures:
        parts += [np.array(block.features, np.int32) + first for block in picture.blocks]
        first += len(picture.tiles) * tile.features
    return np.concatenate(parts)


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
        spans, start, starts = [], 0, encoded.starts
        while start < len(encoded.tokens):
            first = bisect_left(starts, start)  # the number of the first tile
            too_many = first + self.max_images
            stop = min(
                start + self.sequence_length, starts[too_many] if too_many < len(starts) else len(encoded.tokens)
            )
            if stop < len(encoded.tokens):
                stop = self._best_stop(encoded, start=start, stop=stop)
            spans.append(Span(start, stop, bisect_left(starts, stop) - first))
            start = stop
        return spans

    def _best_stop(self, encoded: Encoded, *, start: int, stop: int) -> int:
        """The best position to cut at, at most `stop`."""
        number = bisect_left(encoded.extents, stop, key=itemgetter(0)) - 1  # of the last picture that starts before
        if number >= 0 and stop < encoded.extents[number][1]:
            first = encoded.extents[number][0]
            if first > start:
                return first  # the picture moves to the next span, whole
            last = encoded.starts[bisect_left(encoded.starts, stop) - 1]  # it fits no sequence: its tiles stay whole
            return last if start < last < stop < last + self.tile.tokens else stop
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

"""Document -> Encoded: ids with image places, the loss mask, the pictures; and where to cut a long one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mm1.data.chat import is_chat, marked, messages
from mm1.data.tokenizer import Tokenizer
from mm1.document import Document, Encoded, Image, Mark, Text


def encode(document: Document, tokenizer: Tokenizer, *, image_tokens: int, end: bool = True) -> Encoded:
    """The document in the model's words: `<|begin|>`, its pieces, `<|end|>`.

    An image takes `image_tokens` places. `end=False` leaves the document open, as a prompt is.
    `<|end|>` is learned after trained text only. A conversation to be continued is written by the tokenizer's own
    template where it has one.
    """
    if not end and tokenizer.template is not None and any(isinstance(piece, Mark) for piece in document.pieces):
        return _by_template(document, tokenizer, image_tokens=image_tokens)
    return encode_many([document], tokenizer, image_tokens=image_tokens, end=end)[0]


def encode_many(
    documents: Sequence[Document], tokenizer: Tokenizer, *, image_tokens: int, end: bool = True
) -> list[Encoded]:
    """Each document as `encode` gives it; the tokenizer sees all texts that have no ids at once and uses all cores."""
    documents = [marked(document) if is_chat(document) else document for document in documents]
    texts = [piece for document in documents for piece in document.pieces if isinstance(piece, Text)]
    ids = iter(tokenizer.encode_many([text.text for text in texts if text.ids is None]))
    return [_assemble(document, ids, tokenizer, image_tokens=image_tokens, end=end) for document in documents]


def _assemble(
    document: Document, ids: Iterator[list[int]], tokenizer: Tokenizer, *, image_tokens: int, end: bool
) -> Encoded:
    """`ids` gives the tokens of the next text without ids each time one is met."""
    marks, taught = tokenizer.marks, _teaches(document)
    tokens, train, images = [*tokenizer.begin], [False] * len(tokenizer.begin), []
    for piece in document.pieces:
        if isinstance(piece, Image):
            tokens += [tokenizer.image] * image_tokens
            train += [False] * image_tokens
            images.append(piece)
        elif isinstance(piece, Mark):
            tokens.append(marks[piece.name])
            train.append(piece.train)
        else:
            part = next(ids) if piece.ids is None else piece.ids
            tokens += part
            train += [piece.train and taught] * len(part)
    if end and tokens[-1:] != [marks["end"]]:
        tokens.append(marks["end"])
        train.append(taught)
    return Encoded(np.array(tokens, np.int32), np.array(train, bool), tuple(images))


def _by_template(document: Document, tokenizer: Tokenizer, *, image_tokens: int) -> Encoded:
    found = tokenizer.conversation(messages(document))
    tokens = [one for token in found for one in [token] * (image_tokens if token == tokenizer.image else 1)]
    return Encoded(np.array(tokens, np.int32), np.zeros(len(tokens), bool), document.images)


def _teaches(document: Document) -> bool:
    """Whether there is anything to learn: an empty caption must not teach that pictures need none."""
    return any(isinstance(piece, Text) and piece.train and piece.text.strip() for piece in document.pieces)


@dataclass(frozen=True, slots=True)
class Span:
    """Places [start, stop) of an encoded document, with the images in them."""

    start: int
    stop: int
    images: int


def cut(
    encoded: Encoded,
    breaks: np.ndarray,
    *,
    image: int,
    image_tokens: int,
    sequence_length: int,
    max_images: int,
) -> list[Span]:
    """The spans of a document, each fitting a row; one span when the whole document fits.

    Cuts fall after a line, else a sentence, else a word piece, within the last 1/32 of a row, and never
    inside an image's places; no place and no image is lost. `breaks` is `Tokenizer.breaks()`.
    """
    tokens = encoded.tokens
    is_image = tokens == image
    seen = np.concatenate([[0], np.cumsum(is_image)])  # image places before each place
    spans, start = [], 0
    while start < len(tokens):
        last_image_fits = np.searchsorted(seen, seen[start] + max_images * image_tokens, side="right") - 1
        stop = min(start + sequence_length, int(last_image_fits))
        if stop < len(tokens):
            stop = _best_stop(tokens, breaks, seen, start=start, stop=stop, image_tokens=image_tokens)
        spans.append(Span(start, stop, int(seen[stop] - seen[start]) // image_tokens))
        start = stop
    return spans


def _best_stop(
    tokens: np.ndarray, breaks: np.ndarray, seen: np.ndarray, *, start: int, stop: int, image_tokens: int
) -> int:
    inside = int(seen[stop]) % image_tokens
    if inside:  # a picture would be torn: it moves to the next span whole
        return stop - inside
    window = max(1, (stop - start) // 32)
    quality = breaks[tokens[stop - window : stop]]
    best = int(quality.max())
    if best == 0:
        return stop
    return stop - window + int(np.flatnonzero(quality == best)[-1]) + 1

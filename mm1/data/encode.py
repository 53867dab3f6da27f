"""Document -> Encoded: ids with image places, the loss mask, the pictures; and where to cut a long one."""

from dataclasses import dataclass

import numpy as np

from mm1.data.chat import is_chat, marked
from mm1.data.tokenizer import Tokenizer
from mm1.document import Document, Encoded, Image, Mark, Text


def encode(document: Document, tokenizer: Tokenizer, *, image_tokens: int, end: bool = True) -> Encoded:
    """The document in the model's words: `<|begin|>`, its pieces, `<|end|>`.

    An image takes `image_tokens` places. `end=False` leaves the document open, as a prompt is.
    `<|end|>` is learned after trained text only.
    """
    if is_chat(document):
        document = marked(document)
    marks = tokenizer.marks
    tokens, train, images = [marks["begin"]], [False], []
    for piece in document.pieces:
        if isinstance(piece, Image):
            tokens += [tokenizer.image] * image_tokens
            train += [False] * image_tokens
            images.append(piece.data)
        elif isinstance(piece, Mark):
            tokens.append(marks[piece.name])
            train.append(piece.train)
        else:
            ids = tokenizer.encode(piece.text)
            tokens += ids
            train += [piece.train] * len(ids)
    closed = tokens[-1] == marks["end"]
    if end and not closed:
        tokens.append(marks["end"])
        train.append(_ends_trained(document))
    return Encoded(np.array(tokens, np.int32), np.array(train, bool), tuple(images))


def _ends_trained(document: Document) -> bool:
    return any(isinstance(piece, Text) and piece.train for piece in document.pieces)


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
    row_length: int,
    row_images: int,
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
        last_image_fits = np.searchsorted(seen, seen[start] + row_images * image_tokens, side="right") - 1
        stop = min(start + row_length, int(last_image_fits))
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

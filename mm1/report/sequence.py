"""A packed sequence or a document as an HTML page: what the model sees, and checks that documents stay apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from mm1.config import run as config
from mm1.data.loader import sequences_of
from mm1.data.preview import PageItem, page_items, png_uri
from mm1.data.store import open_store
from mm1.data.tokenizer import Tokenizer
from mm1.document import IGNORED, Batch, Document
from mm1.report.templates import load_template

COLOURS = 8
"""Colours that the page has for documents; they repeat."""

MASK_PIXELS = 512
"""Largest width of the picture of the attention mask."""


@dataclass(frozen=True, slots=True)
class DocumentSpan:
    """One document of a sequence as the page shows it."""

    number: int
    colour: int
    items: list[PageItem]
    start: int
    length: int
    images: int
    trained: int


@dataclass(frozen=True, slots=True)
class Check:
    """A property that a packed sequence must have, tested on its arrays."""

    claim: str
    passed: bool
    evidence: str


def run_sequence_page(folder: Path, number: int) -> str:
    """The page of sequence `number` of the run in `folder`, packed again from the run's config.

    Raises:
        ConfigError: no run in that folder.
        StoreError: the run's data can no longer be read.
    """
    run = config.load(folder / "config.json")
    sequences = sequences_of(run, folder)
    title = f"sequence {number} of {folder.name}"
    return sequence_page(sequences.batch([number]), sequences.tokenizer, sources=sequences.names, title=title)


def store_document_page(store: str, number: int) -> str:
    """The page of document `number` of a store.

    Raises:
        StoreError: no such store.
        ValueError: it has no such document.
    """
    opened = open_store(store)
    if number >= len(opened):
        raise ValueError(f"{store} has {len(opened)} documents, numbered from 0; there is no document {number}")
    return document_page(opened.take([number])[0], title=f"{store}, document {number}")


def sequence_page(batch: Batch, tokenizer: Tokenizer, *, sources: Sequence[str], title: str = "sequence") -> str:
    """An HTML page of a batch of one sequence: its documents, text and pictures in order, with all checks.

    Raises:
        ValueError: the batch has more than one sequence.
    """
    if len(batch.tokens_BT) != 1:
        raise ValueError(f"a page shows one sequence; the batch has {len(batch.tokens_BT)}")
    arrays = _Arrays(batch, image_token=tokenizer.image)
    spans = [_document_span(arrays, number, tokenizer) for number in range(1, int(arrays.document.max(initial=0)) + 1)]
    positions, filled = len(arrays.tokens), int((arrays.document > 0).sum())
    trained = int(arrays.trained.sum())
    facts = [
        ("source", sources[int(batch.source_B[0])]),
        ("documents", str(len(spans))),
        ("images", str(batch.images)),
        ("positions", f"{positions:,}"),
        ("filled", f"{filled:,} ({filled / positions:.1%})"),
        ("padding", f"{positions - filled:,} ({1 - filled / positions:.1%})"),
        ("trained tokens", f"{trained:,} ({trained / max(filled, 1):.1%} of the filled)"),
    ]
    return load_template("sequence.html").render(
        title=title, facts=facts, spans=spans, checks=checks(batch, tokenizer.image), mask=_mask_picture(arrays)
    )


def document_page(document: Document, *, title: str = "") -> str:
    """An HTML page of a document: its pieces in reading order, trained text marked; a chat shows its roles."""
    span = DocumentSpan(1, 0, page_items(document), start=0, length=0, images=len(document.images), trained=0)
    facts = [("id", document.id), ("source", document.source), *document.metadata.items()]
    return load_template("sequence.html").render(
        title=title or document.id or "document",
        facts=[(name, value) for name, value in facts if value],
        spans=[span],
        checks=[],
        mask="",
    )


def checks(batch: Batch, image_token: int) -> list[Check]:
    """The properties that the packed sequence of a batch of one must have, each with the numbers that were counted.

    Document borders are read from positions that start again at 0, the attention mask from document numbers: two
    records that agree only if packing is right.
    """
    arrays = _Arrays(batch, image_token=image_token)
    return [*_attention_checks(arrays), _target_check(arrays), _padding_check(arrays), *_image_checks(arrays)]


class _Arrays:
    """The arrays of a batch's only sequence."""

    def __init__(self, batch: Batch, *, image_token: int):
        self.tokens = batch.tokens_BT[0].numpy()
        self.targets = batch.targets_BT[0].numpy()
        self.document = batch.document_BT[0].numpy()
        self.position = batch.position_BT[0].numpy()
        self.pictures = batch.images_NCYX[: batch.images].numpy()
        self.images = batch.images
        self.image_token = image_token
        self.is_image = (self.tokens == image_token) & (self.document > 0)
        self.in_order = batch.feature_BT is None
        self.image_tokens = int(self.is_image.sum()) // batch.images if batch.images else 0
        if batch.feature_BT is None:
            self.tile = (self.is_image.cumsum() - 1) // max(self.image_tokens, 1)
        else:
            self.tile = batch.feature_BT[0].numpy() // batch.features
        self.trained = self.targets != IGNORED

    def tiles(self, start: int, stop: int) -> dict[int, int]:
        """The tiles that positions [start, stop) show a part of, each with its number of positions."""
        tiles, counts = np.unique(self.tile[start:stop][self.is_image[start:stop]], return_counts=True)
        return dict(zip(tiles.tolist(), counts.tolist(), strict=True))

    def mask(self) -> np.ndarray:
        """Which position (first axis) sees which (second axis): those of its own document up to itself."""
        same = self.document[:, None] == self.document[None, :]
        return np.tril(same & (self.document > 0)[:, None])

    def extents(self) -> list[range]:
        """The positions of each document, from where position numbers start again at 0."""
        filled = int((self.document > 0).sum())
        starts = np.flatnonzero(self.position[:filled] == 0).tolist()
        return [range(start, stop) for start, stop in zip(starts, [*starts[1:], filled], strict=True)]


def _attention_checks(arrays: _Arrays) -> list[Check]:
    mask_TT, extents = arrays.mask(), arrays.extents()
    crossing = sum(int(mask_TT[a.start : a.stop, b.start : b.stop].sum()) for a in extents for b in extents if a != b)
    seen = sum(int(mask_TT[a.start : a.stop, a.start : a.stop].sum()) for a in extents)
    expected = sum(len(extent) * (len(extent) + 1) // 2 for extent in extents)
    pairs = len(extents) * (len(extents) - 1)
    return [
        Check(
            "no document sees another",
            crossing == 0,
            f"{crossing:,} positions seen across {pairs:,} ordered pairs of {len(extents)} documents",
        ),
        Check(
            "every position sees its own document up to itself",
            seen == expected,
            f"{seen:,} of {expected:,} pairs of positions",
        ),
    ]


def _target_check(arrays: _Arrays) -> Check:
    trained = np.flatnonzero(arrays.trained)
    following = np.minimum(trained + 1, len(arrays.tokens) - 1)
    is_right = (
        (trained + 1 < len(arrays.tokens))
        & (arrays.tokens[following] == arrays.targets[trained])
        & (arrays.document[following] == arrays.document[trained])
    )
    wrong = trained[~is_right]
    first = f"; the first wrong one is at position {wrong[0]}" if len(wrong) else ""
    return Check(
        "every target is the next token of the same document",
        bool(is_right.all()),
        f"{int(is_right.sum()):,} of {len(trained):,} targets{first}",
    )


def _padding_check(arrays: _Arrays) -> Check:
    mask_TT, padding = arrays.mask(), arrays.document == 0
    faults = int((padding & arrays.trained).sum() + mask_TT[padding].sum() + mask_TT[:, padding].sum())
    return Check(
        "padding is neither seen nor trained", faults == 0, f"{faults:,} faults in {int(padding.sum()):,} positions"
    )


def _image_checks(arrays: _Arrays) -> list[Check]:
    positions = int(arrays.is_image.sum())
    of_documents = [arrays.tiles(extent.start, extent.stop) for extent in arrays.extents()]
    torn = sum(map(len, of_documents)) - len({tile for tiles in of_documents for tile in tiles})
    is_whole = positions == arrays.images * arrays.image_tokens or not arrays.in_order
    targets = int((arrays.targets[arrays.trained] == arrays.image_token).sum())
    return [
        Check(
            "every image has its positions, inside one document",
            is_whole and torn == 0 and max(map(max, filter(None, of_documents)), default=-1) < arrays.images,
            f"{positions:,} positions for {arrays.images} images",
        ),
        Check("no image token is a target", targets == 0, f"{targets:,} image targets"),
    ]


def _document_span(arrays: _Arrays, number: int, tokenizer: Tokenizer) -> DocumentSpan:
    positions = np.flatnonzero(arrays.document == number)
    start, stop = int(positions[0]), int(positions[-1]) + 1
    tiles, shown = arrays.tiles(start, stop), set()
    items: list[PageItem] = []
    for index in range(start, stop):
        position = arrays.position[index]
        if arrays.is_image[index]:
            tile = int(arrays.tile[index])
            if tile not in shown:
                shown.add(tile)
                tip = f"{tiles[tile]} positions from {index} on, from {position} on in the document"
                picture = _picture_uri(arrays.pictures[tile]) if tile < len(arrays.pictures) else ""
                items.append(PageItem("image", picture, tip, trained=False))
            continue
        token = int(arrays.tokens[index])
        is_trained = index > start and bool(arrays.trained[index - 1])
        tip = f"position {index}, {position} in the document, id {token}, {'trained' if is_trained else 'read only'}"
        kind = "mark" if token in tokenizer.marks.values() else "token"
        items.append(PageItem(kind, tokenizer.symbol(token), tip, is_trained))
    return DocumentSpan(
        number=number,
        colour=(number - 1) % COLOURS,
        items=items,
        start=start,
        length=stop - start,
        images=len(tiles),
        trained=int(arrays.trained[start:stop].sum()),
    )


def _mask_picture(arrays: _Arrays) -> str:
    """The attention mask as a data: URI, one pixel per pair of positions, or per pair of blocks in long sequences."""
    mask_TT = arrays.mask()
    block = -(-len(mask_TT) // MASK_PIXELS)
    count = len(mask_TT) // block
    whole = mask_TT[: count * block, : count * block]
    blocks = whole.reshape(count, block, count, block).any(axis=(1, 3))
    alpha = np.where(blocks, 210, 18).astype(np.uint8)
    grey = np.full_like(alpha, 120)
    return png_uri(Pillow.fromarray(np.stack([grey, grey, grey, alpha], axis=-1), "RGBA"))


def _picture_uri(image_CYX: np.ndarray) -> str:
    return png_uri(Pillow.fromarray(np.ascontiguousarray(image_CYX.transpose(1, 2, 0))))

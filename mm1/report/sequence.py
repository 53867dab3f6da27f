"""A packed row, or a document, as an HTML page: what the model sees, and proof that documents stay apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from PIL import Image as Pillow

from mm1.config import run as config
from mm1.data.loader import rows_of
from mm1.data.preview import Place, places_of, png_uri
from mm1.data.store import open_store
from mm1.data.tokenizer import Tokenizer
from mm1.document import IGNORED, Batch, Document

BANDS = 8
"""Colours of the page's document bands; they repeat."""


@dataclass(frozen=True, slots=True)
class Band:
    """One document of a row."""

    number: int
    colour: int
    places: list[Place]
    start: int
    length: int
    images: int
    trained: int


@dataclass(frozen=True, slots=True)
class Proof:
    """A property of the row, checked on its numbers."""

    claim: str
    passed: bool
    found: str


def show_row_of(folder: Path, number: int) -> str:
    """The page of row `number` of the run in `folder`, made anew from its recipe: any row of any run.

    Raises:
        ConfigError, StoreError: no run there, or its data are gone.
    """
    run = config.load(folder / "config.json")
    rows = rows_of(run, folder)
    title = f"row {number} of {folder.name}"
    return show_row(rows.batch([number]), rows.tokenizer, sources=rows.names, title=title)


def show_document_of(store: str, position: int) -> str:
    """The page of the document at `position` of a store.

    Raises:
        StoreError: no such store. ValueError: it has no such document.
    """
    opened = open_store(store)
    if position >= len(opened):
        raise ValueError(f"{store} has {len(opened)} documents, numbered from 0; there is no document {position}")
    return show_document(opened.take([position])[0], title=f"{store}, document {position}")


def show_row(batch: Batch, tokenizer: Tokenizer, *, sources: Sequence[str], title: str = "row") -> str:
    """An HTML page of a batch of one row: text and pictures in their places, one band a document.

    Raises:
        ValueError: the batch has more rows than one.
    """
    if len(batch.tokens_BT) != 1:
        raise ValueError(f"a page shows one row; the batch has {len(batch.tokens_BT)}")
    row = _Row(batch, image_token=tokenizer.image)
    bands = [_band(row, number, tokenizer) for number in range(1, int(row.document.max(initial=0)) + 1)]
    places, filled = len(row.tokens), int((row.document > 0).sum())
    facts = [
        ("source", sources[int(batch.source_B[0])]),
        ("documents", str(len(bands))),
        ("images", str(batch.images)),
        ("places", f"{places:,}"),
        ("filled", f"{filled:,} ({filled / places:.1%})"),
        ("padding", f"{places - filled:,} ({1 - filled / places:.1%})"),
        ("trained tokens", f"{int(row.learns.sum()):,} ({row.learns.sum() / max(filled, 1):.1%} of the filled)"),
    ]
    return _page().render(
        title=title, facts=facts, bands=bands, proofs=proofs(batch, tokenizer.image), mask=_mask_picture(row)
    )


def proofs(batch: Batch, image_token: int) -> list[Proof]:
    """What must hold in a packed row of a batch of one, each with what was found.

    Document borders are read from positions that start again at 0, the attention mask from document
    numbers: two records that agree only if packing was right.
    """
    row = _Row(batch, image_token=image_token)
    extents, trained = row.extents(), np.flatnonzero(row.learns)
    mask_TT = row.mask()
    crossings = sum(int(mask_TT[a.start : a.stop, b.start : b.stop].sum()) for a in extents for b in extents if a != b)
    inside = sum(int(mask_TT[a.start : a.stop, a.start : a.stop].sum()) for a in extents)
    due = sum((a.stop - a.start) * (a.stop - a.start + 1) // 2 for a in extents)
    following = np.minimum(trained + 1, len(row.tokens) - 1)
    right = (
        (trained + 1 < len(row.tokens))
        & (row.tokens[following] == row.targets[trained])
        & (row.document[following] == row.document[trained])
    )
    pairs = len(extents) * (len(extents) - 1)
    padding = row.document == 0
    spoilt = int((padding & row.learns).sum() + mask_TT[padding].sum() + mask_TT[:, padding].sum())
    image_places = int(row.is_image.sum())
    torn = sum(int(row.is_image[a.start : a.stop].sum()) % max(row.image_tokens, 1) for a in extents)
    return [
        Proof(
            "no document sees another",
            crossings == 0,
            f"{crossings:,} places seen across {pairs:,} ordered pairs of {len(extents)} documents",
        ),
        Proof(
            "every place sees its own document so far",
            inside == due,
            f"{inside:,} of {due:,} pairs of places at or before it",
        ),
        Proof(
            "every target is the next token of the same document",
            bool(right.all()),
            f"{int(right.sum()):,} of {len(trained):,} targets" + _first_wrong(trained[~right]),
        ),
        Proof(
            "padding is neither seen nor trained", spoilt == 0, f"{spoilt:,} faults in {int(padding.sum()):,} places"
        ),
        Proof(
            "every image has its places, inside one document",
            image_places == batch.images * row.image_tokens and torn == 0,
            f"{image_places:,} places for {batch.images} images",
        ),
        Proof(
            "no image place is a target",
            not (row.targets[trained] == image_token).any(),
            f"{int((row.targets[trained] == image_token).sum()):,} image targets",
        ),
    ]


def show_document(document: Document, *, title: str = "") -> str:
    """An HTML page of a document: its pieces in reading order, trained text marked; a chat with its roles."""
    places = places_of(document)
    band = Band(1, 0, places, start=0, length=0, images=len(document.images), trained=0)
    facts = [("id", document.id), ("source", document.source), *document.metadata.items()]
    return _page().render(
        title=title or document.id or "document",
        facts=[(name, value) for name, value in facts if value],
        bands=[band],
        proofs=[],
        mask="",
    )


class _Row:
    """The arrays of a batch's only row."""

    def __init__(self, batch: Batch, *, image_token: int):
        self.tokens = batch.tokens_BT[0].numpy()
        self.targets = batch.targets_BT[0].numpy()
        self.document = batch.document_BT[0].numpy()
        self.position = batch.position_BT[0].numpy()
        self.pictures = batch.images_NCYX[: batch.images].numpy()
        self.is_image = (self.tokens == image_token) & (self.document > 0)
        self.image_tokens = int(self.is_image.sum()) // batch.images if batch.images else 0
        self.learns = self.targets != IGNORED

    def mask(self) -> np.ndarray:
        """Which place (row) may see which (column): its own document's, up to itself."""
        same = self.document[:, None] == self.document[None, :]
        return np.tril(same & (self.document > 0)[:, None])

    def extents(self) -> list[range]:
        """The places of each document, from where positions start again at 0."""
        filled = int((self.document > 0).sum())
        starts = np.flatnonzero(self.position[:filled] == 0).tolist()
        return [range(start, stop) for start, stop in zip(starts, [*starts[1:], filled], strict=True)]


def _band(row: _Row, number: int, tokenizer: Tokenizer) -> Band:
    here = np.flatnonzero(row.document == number)
    start, stop = int(here[0]), int(here[-1]) + 1
    before = int(row.is_image[:start].sum())  # image places before this document
    places: list[Place] = []
    for place in range(start, stop):
        tip = f"place {place}, position {row.position[place]}, id {row.tokens[place]}"
        if row.is_image[place]:
            image, inside = divmod(before + int(row.is_image[start:place].sum()), max(row.image_tokens, 1))
            if inside == 0:
                tip = f"{row.image_tokens} places from {place}, position {row.position[place]}"
                picture = _pixels(row.pictures[image]) if image < len(row.pictures) else ""
                places.append(Place("image", picture, tip, trained=False))
            continue
        symbol = tokenizer.symbol(int(row.tokens[place]))
        learned = place > start and bool(row.learns[place - 1])
        kind = "mark" if int(row.tokens[place]) in tokenizer.marks.values() else "token"
        places.append(Place(kind, symbol, tip + (", trained" if learned else ", read only"), learned))
    return Band(
        number=number,
        colour=(number - 1) % BANDS,
        places=places,
        start=start,
        length=stop - start,
        images=int(row.is_image[start:stop].sum()) // max(row.image_tokens, 1),
        trained=int(row.learns[start:stop].sum()),
    )


def _first_wrong(places: np.ndarray) -> str:
    return f"; wrong first at place {places[0]}" if len(places) else ""


def _mask_picture(row: _Row) -> str:
    """The attention mask as a data: URI, one pixel a pair of places (or of blocks, in long rows)."""
    mask_TT = row.mask()
    block = -(-len(mask_TT) // 512)
    short = len(mask_TT) // block * block
    blocks = mask_TT[:short, :short].reshape(short // block, block, short // block, block).any(axis=(1, 3))
    alpha = np.where(blocks, 210, 18).astype(np.uint8)
    grey = np.full_like(alpha, 120)
    return png_uri(Pillow.fromarray(np.stack([grey, grey, grey, alpha], axis=-1), "RGBA"))


def _pixels(image_CYX: np.ndarray) -> str:
    return png_uri(Pillow.fromarray(np.ascontiguousarray(image_CYX.transpose(1, 2, 0))))


def _page():
    environment = Environment(
        loader=PackageLoader("mm1.report", "."),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("sequence.html")

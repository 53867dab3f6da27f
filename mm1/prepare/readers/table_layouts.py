"""The layouts of tables: which columns hold pictures, texts, conversations, and how a row of them becomes documents."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mm1.document import Document, Piece, Text
from mm1.prepare.bounded_read import parse_json
from mm1.prepare.ledger import Dropped, Page, Record
from mm1.prepare.readers.chats import (
    TRANSCRIBE,
    Turn,
    chat,
    conversation,
    has_instructions,
    is_instruction,
    names_texts,
    turns_of,
)
from mm1.prepare.readers.pictures import Pictures
from mm1.prepare.shard import InputError, ReadOptions

PICTURE_COLUMNS = (
    *("image", "jpg", "png", "webp", "image_bytes", "img", "picture"),
    *("file_name", "file_names", "image_path", "filepath", "images"),
)
ADDRESS_COLUMNS = ("url", "URL", "image_url")
TEXT_COLUMNS = (
    *("caption", "text", "TEXT", "txt", "captions", "alt_text", "sentences", "raw", "alt", "description"),
    *("annotations_captions", "caption_str"),
)
CHAT_COLUMNS = ("conversations", "messages")
_GROUND_TRUTH = "ground_truth"
Role = Literal["image", "text", "images", "texts", "messages", "url"]
"""What `columns=` may name: what the columns of a table are called in the layouts that are known."""

Rating = Literal["relevance", "visual_dependency", "image_correspondence", "formatting"]
"""What FineVision rates a turn for."""

_PAGE_COLUMNS = {"dump", "token_count", "minhash_cluster_size", "title", "timestamp", "wikitext"}
_MEASURES_OF_PICTURES = {"width", "height", "WIDTH", "similarity", "clip_similarity_vitb32", "punsafe", "NSFW", "phash"}
_NUMBERED = re.compile(r"(caption|text|sentence)s?[_ ]?\d+")
_PICTURE_ADDRESS = re.compile(r"[^?#]*\.(jpe?g|png|webp|gif|avif|bmp|tiff?)([?#/].*)?", re.IGNORECASE | re.DOTALL)

Row = dict[str, Any]
ToDocument = Callable[[Row, Pictures, Record], Document]


@dataclass(frozen=True, slots=True)
class TableLayout:
    """How the rows of a table become documents: `parts` of a row are one, or one for each of its captions.

    Rows of a table of instructions that hold none are read in the layout `without_instruction`.
    """

    to_document: ToDocument
    text: str | None = None
    texts: tuple[str, ...] = ()
    without_instruction: "TableLayout | None" = None

    def of_row(self, row: Row) -> "TableLayout":
        """The layout in which a row is read."""
        other = self.without_instruction
        return self if other is None or is_instruction(row) else other

    def parts(self, row: Row) -> list[Row]:
        """The row, or a copy of it for each of several captions."""
        if self.text is None:
            return [row]
        captions = [caption for name in self.texts or (self.text,) for caption in captions_of(row.get(name))]
        return [{**row, self.text: caption} for caption in captions] or [{**row, self.text: None}]


def renamed(rows: list[Row], columns: Mapping[str, str]) -> list[Row]:
    """The rows with the columns that the user names under the names that the layouts know."""
    if not columns:
        return rows
    return [{**row, **{role: row.get(column) for role, column in columns.items()}} for row in rows]


def table_layout(columns: Sequence[str], title: str, *, options: ReadOptions, some: Sequence[Row]) -> TableLayout:
    """The layout of a table with these columns; `some` of its rows show what an address leads to.

    Raises:
        InputError: no known layout has them, or one that the user names is missing.
    """
    names = set(columns)
    missing = [column for column in options.columns.values() if column not in names]
    if missing:
        raise InputError(f"{title} has no column {missing[0]!r}; it has {', '.join(sorted(names))}")
    names |= set(options.columns)
    if {"texts", "images"} <= names:
        unrated = [name for name in options.min_ratings if f"{name}_ratings" not in names]
        if unrated:
            raise InputError(f"{title} has no column {unrated[0]}_ratings; it has {', '.join(sorted(names))}")
        return TableLayout(lambda row, pictures, record: _interleaved(row, pictures, record, options))
    if not names_texts(options.columns):
        if names & set(CHAT_COLUMNS):
            return TableLayout(_conversation)
        if has_instructions(names):
            has_texts = _text_column(names, options) is not None
            other = _layout_of_texts(names, title, options=options, some=some) if has_texts else None
            return TableLayout(_conversation, without_instruction=other)
    return _layout_of_texts(names, title, options=options, some=some)


def _layout_of_texts(names: set[str], title: str, *, options: ReadOptions, some: Sequence[Row]) -> TableLayout:
    """The layout of a table that is read for its texts, with or without pictures.

    Raises:
        InputError: no column of a known name has any.
    """
    picture, text = _picture_column(names, options), _text_column(names, options)
    numbered = tuple(sorted(name for name in names if _NUMBERED.fullmatch(name)))
    if text is None and numbered:
        text = numbered[0]
    if text is None and picture is not None and _GROUND_TRUTH in names:
        return TableLayout(lambda row, *more: _transcription(row.get(_GROUND_TRUTH), row.get(picture), *more))
    if text is None:
        raise InputError(
            f"{title} has the columns {', '.join(sorted(names))}; expected texts and images (OBELICS, The Cauldron), "
            f"conversations, or a text column ({', '.join(TEXT_COLUMNS)}) with or without a picture column "
            f"({', '.join((*PICTURE_COLUMNS, *ADDRESS_COLUMNS))}); columns=image=NAME,text=NAME names others"
        )
    is_named = not {"image", "url"}.isdisjoint(options.columns)
    of_page = picture in ADDRESS_COLUMNS and not is_named and _is_of_page(names, picture, text, some)
    if picture is None or of_page:
        return TableLayout(lambda row, *_: _plain_text(row.get(text)))
    texts = numbered if text in numbered else ()
    return TableLayout(lambda row, *more: _captioned_picture(row.get(text), row.get(picture), *more), text, texts)


def _picture_column(names: set[str], options: ReadOptions) -> str | None:
    named = next((role for role in ("image", "url") if role in options.columns), None)
    return named or _first_of((*PICTURE_COLUMNS, *ADDRESS_COLUMNS), names)


def _text_column(names: set[str], options: ReadOptions) -> str | None:
    return "text" if "text" in options.columns else _first_of(TEXT_COLUMNS, names)


def _first_of(known: Sequence[str], names: set[str]) -> str | None:
    """The first of the known columns that is there, whatever the case of its letters."""
    there = {name.lower(): name for name in sorted(names)}
    exact = next((name for name in known if name in names), None)
    return exact or next((there[name.lower()] for name in known if name.lower() in there), None)


def _is_of_page(names: set[str], url: str | None, text: str, some: Sequence[Row]) -> bool:
    """Whether the address is that of a page whose text the row holds (FineWeb, Wikipedia, C4), not a picture's."""
    if text not in ("text", "raw"):
        return False
    addresses = [row.get(url) for row in some if url and isinstance(row.get(url), str)]
    pictures = sum(_PICTURE_ADDRESS.fullmatch(address) is not None for address in addresses if address)
    if names & _PAGE_COLUMNS:
        return True
    return bool(addresses) and 2 * pictures < len(addresses) and not names & _MEASURES_OF_PICTURES


def captions_of(cell: Any) -> Iterator[str]:
    """The captions of a cell: a text, a list of texts, COCO's list of `{raw}`, or such a list written as JSON."""
    if isinstance(cell, str):
        values = parse_json(cell) if cell.startswith('["') else None
        if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
            yield from captions_of(values)
        elif cell.strip():
            yield cell
    elif isinstance(cell, dict):
        yield from captions_of(next((cell[key] for key in ("raw", "caption", "text") if cell.get(key)), None))
    elif isinstance(cell, list):
        for value in cell:
            yield from captions_of(value)


def _plain_text(cell: Any) -> Document:
    if not isinstance(cell, str) or not cell.strip():
        raise Dropped("row without a text")
    return Document((Text(cell),))


def _captioned_picture(text_cell: Any, picture_cell: Any, pictures: Pictures, record: Record) -> Document:
    """The picture of a row, or its pictures, then its text."""
    cells = picture_cell if isinstance(picture_cell, list) else [picture_cell]
    cells = [cell for cell in cells if not _is_empty(cell)]
    record.pictures = len(cells)
    if not cells:
        raise Dropped("row without a picture")
    if not isinstance(text_cell, str) or not text_cell.strip():
        raise Dropped("row without a text")
    return Document((*map(pictures.get, cells), Text(" ".join(text_cell.split()))))


def _transcription(truth_cell: Any, picture_cell: Any, pictures: Pictures, record: Record) -> Document:
    """SynthDog (https://huggingface.co/datasets/naver-clova-ix/synthdog-en): the text of a picture, within JSON.

    Data sets of the same form with fields instead of a text (CORD) have no transcription.
    """
    record.pictures = 1
    truth = parse_json(truth_cell) if isinstance(truth_cell, str) else truth_cell
    parsed = truth.get("gt_parse") if isinstance(truth, dict) else None
    text = parsed.get("text_sequence") if isinstance(parsed, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise Dropped("row whose ground_truth has no gt_parse.text_sequence")
    return chat([Turn("user", TRANSCRIBE), Turn("assistant", text)], [pictures.get(picture_cell)])


def _is_empty(cell: Any) -> bool:
    return cell is None or cell == "" or (isinstance(cell, dict) and not any(cell.values()))


def _interleaved(row: Row, pictures: Pictures, record: Record, options: ReadOptions) -> Document:
    """OBELICS (https://huggingface.co/datasets/HuggingFaceM4/OBELICS) or The Cauldron: both have texts and images."""
    texts, images = row["texts"] or [], row["images"] or []
    record.pictures = sum(image is not None for image in images)
    if texts and isinstance(next((text for text in texts if text is not None), None), dict):
        return _questions(row, pictures, options)
    if len(texts) != len(images):
        raise Dropped("row whose texts and images differ in number", detail=f"{len(texts)}, {len(images)}")
    pieces: list[Piece] = []
    for text, image in zip(texts, images, strict=True):
        if image is not None:
            pieces.append(pictures.get(image))
        if isinstance(text, str) and text.strip():
            pieces.append(Text(text if text.endswith("\n") else text + "\n\n"))
    if not pieces:
        raise Dropped("row with nothing in it")
    page = parse_json(row.get("general_metadata") or "")
    url = page.get("url") if isinstance(page, dict) else None
    return Page(tuple(pieces), metadata={"url": url} if isinstance(url, str) else {})


def _questions(row: Row, pictures: Pictures, options: ReadOptions) -> Document:
    """The Cauldron and FineVision: all pictures, then turns of user and assistant, those that are rated well enough.

    https://huggingface.co/datasets/HuggingFaceM4/FineVision: each turn has a rating from 1 to 5 in four respects.
    """
    rated = [turn for number, turn in enumerate(row["texts"]) if _is_rated(row, number, options)]
    if not rated:
        raise Dropped("conversation whose turns are rated lower than asked (min_ratings)", expected=True)
    turns = [Turn(role, turn.get(role)) for turn in rated for role in ("user", "assistant")]
    if not all(isinstance(turn.text, str) for turn in turns):
        raise Dropped("row whose turns are of no known form")
    return chat(turns, [pictures.get(image) for image in row["images"] or []])


def _is_rated(row: Row, number: int, options: ReadOptions) -> bool:
    """Whether a turn has at least the ratings that the user asks for; one that is not rated has."""
    for name, least in options.min_ratings.items():
        ratings = row.get(f"{name}_ratings")
        rating = ratings[number] if isinstance(ratings, list) and number < len(ratings) else None
        if isinstance(rating, int | float) and rating < least:
            return False
    return True


def _conversation(row: Row, pictures: Pictures, record: Record) -> Document:
    return conversation(row, turns_of(row), pictures, record)

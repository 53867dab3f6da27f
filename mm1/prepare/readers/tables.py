"""Reads tables (parquet, saved data sets): captioned pictures, OBELICS, The Cauldron, conversations, text."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Any

from mm1.document import Document, Image, Piece, Text
from mm1.prepare.bounded_read import parse_json, read_picture
from mm1.prepare.fetch import FetchError
from mm1.prepare.ledger import Dropped, Ledger, MissingImage, Page, Record
from mm1.prepare.readers.folders import Turn, chat, parse_turns
from mm1.prepare.shard import InputError, Shard, Span, file_inside

PICTURE_COLUMNS = ("image", "jpg", "png", "webp", "image_bytes", "img", "picture")
ADDRESS_COLUMNS = ("url", "URL", "image_url")
TEXT_COLUMNS = ("caption", "text", "TEXT", "txt", "captions", "alt_text")
_METADATA = ("license", "licence", "url", "language", "date", "dump")
_ROWS_IN_MEMORY = 16

Row = dict[str, Any]
ToDocument = Callable[[Row, "Pictures", Record], Document]


class Pictures:
    """The pictures of a table, whatever its cells hold: bytes, {bytes, path}, the name of a file, or an address."""

    def __init__(self, shard: Shard):
        self.shard = shard
        self._fetched: dict[str, bytes | FetchError] = {}

    def get(self, cell: Any) -> Image:
        """The picture of a cell; a `MissingImage` if there is none."""
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, bytes):
            return Image(cell)
        if not isinstance(cell, str) or not cell:
            return MissingImage(reason="row without a picture")
        if "://" not in cell:
            return read_picture(self.shard, cell)
        if self.shard.fetcher is None:
            return MissingImage(reason="picture by address only, not fetched (fetch=true fetches)", name=cell)
        data = self._fetched.pop(cell, None) or self.shard.fetcher.fetch_all([cell])[0]
        return Image(data) if isinstance(data, bytes) else MissingImage(reason=str(data), name=cell)

    def has(self, name: Any) -> bool:
        """Whether there is a picture file of this name."""
        return isinstance(name, str) and any(file_inside(folder, name) for folder in self.shard.picture_folders)

    def prefetch(self, rows: list[Row]) -> None:
        """Fetches the pictures that the rows name by address, from several hosts at once."""
        if self.shard.fetcher is not None:
            addresses = list(dict.fromkeys(_addresses(rows)))
            self._fetched = dict(zip(addresses, self.shard.fetcher.fetch_all(addresses), strict=True))


def read_parquet(shard: Shard, ledger: Ledger) -> Iterator[Document]:
    """One document per row of a parquet file in any of the known layouts.

    Raises:
        InputError: broken, or without the columns of any layout.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = shard.files[0]
    try:
        with pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
            columns = file.schema_arrow.names
            groups, skipped = _row_groups(file, shard.span)
            batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=_ROWS_IN_MEMORY, row_groups=groups))
            rows = _cut(batches, shard.span, skipped)
            yield from _documents(rows, columns, shard=shard, ledger=ledger)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise InputError(f"{path.name} is no readable parquet file: {error}") from error


def read_dataset(shard: Shard, ledger: Ledger) -> Iterator[Document]:
    """One document per row of a data set that `datasets` saved to disk, in any of the known layouts.

    Its Arrow files are read directly, so that pictures stay undecoded.

    Raises:
        InputError: broken, or without the columns of any layout.
    """
    import pyarrow as pa

    path = shard.files[0]
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
            starts = ((batch, start) for batch in stream for start in range(0, batch.num_rows, _ROWS_IN_MEMORY))
            batches = (batch.slice(start, _ROWS_IN_MEMORY).to_pylist() for batch, start in starts)
            yield from _documents(_cut(batches, shard.span, 0), stream.schema.names, shard=shard, ledger=ledger)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path.name} is no Arrow file of a saved data set: {error}") from error


def _row_groups(file: Any, span: Span | None) -> tuple[list[int], int]:
    """The row groups of a parquet file that hold rows of the span, and the number of rows before them."""
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    ends = list(accumulate(sizes))
    if span is None:
        return list(range(len(sizes))), 0
    groups = [group for group, end in enumerate(ends) if end > span.start and end - sizes[group] < span.stop]
    return groups, ends[groups[0]] - sizes[groups[0]] if groups else 0


def _cut(batches: Iterable[list[Row]], span: Span | None, at: int) -> Iterator[list[Row]]:
    """The rows of the span; `at` is the number of the first row of all batches."""
    for rows in batches:
        if span is not None and at >= span.stop:
            return
        kept = rows if span is None else rows[max(0, span.start - at) : max(0, span.stop - at)]
        at += len(rows)
        if kept:
            yield kept


def _documents(batches: Iterable[list[Row]], columns: list[str], *, shard: Shard, ledger: Ledger) -> Iterator[Document]:
    """One document per row, in the layout that the columns' names show."""
    to_document, pictures = _table_layout(columns, shard.name), Pictures(shard)
    rows_read = shard.span.first if shard.span else 0
    for rows in batches:
        pictures.prefetch(rows)
        for number, row in enumerate(rows, start=rows_read):
            with ledger.record(f"row {number}", row) as record:
                document = to_document(row, pictures, record)
                metadata = {key: str(row[key]) for key in _METADATA if row.get(key)}
                metadata |= document.metadata
                yield replace(document, id=f"{shard.name}/{number}", metadata=metadata)
        rows_read += len(rows)


def _table_layout(columns: Iterable[str], title: str) -> ToDocument:
    """How rows with these columns become documents.

    Raises:
        InputError: no known layout has them.
    """
    names = set(columns)
    if {"texts", "images"} <= names:
        return _interleaved
    if names & {"conversations", "messages"}:
        return _conversation
    picture = next((name for name in (*PICTURE_COLUMNS, *ADDRESS_COLUMNS) if name in names), None)
    text = next((name for name in TEXT_COLUMNS if name in names), None)
    if text is None:
        raise InputError(
            f"{title} has the columns {', '.join(sorted(names))}; expected texts and images (OBELICS, The Cauldron), "
            f"conversations, or a text column ({', '.join(TEXT_COLUMNS)}) with or without a picture column "
            f"({', '.join((*PICTURE_COLUMNS, *ADDRESS_COLUMNS))})"
        )
    web_text = picture in ADDRESS_COLUMNS and names & {"dump", "token_count", "minhash_cluster_size"}
    if picture is None or web_text:  # FineWeb's url is the page's, not a picture's
        return lambda row, *_: _plain_text(row[text])
    return lambda row, pictures, record: _captioned_picture(row[text], row[picture], pictures, record)


def _plain_text(cell: Any) -> Document:
    if not isinstance(cell, str) or not cell.strip():
        raise Dropped("row without a text")
    return Document((Text(cell),))


def _captioned_picture(text_cell: Any, picture_cell: Any, pictures: Pictures, record: Record) -> Document:
    if isinstance(picture_cell, dict) and not (picture_cell.get("bytes") or picture_cell.get("path")):
        picture_cell = None
    record.pictures = int(picture_cell is not None)
    if picture_cell is None:
        raise Dropped("row without a picture")
    caption = text_cell[0] if isinstance(text_cell, list) and text_cell else text_cell
    if not isinstance(caption, str) or not caption.strip():
        raise Dropped("row without a text")
    return Document((pictures.get(picture_cell), Text(" ".join(caption.split()))))


def _interleaved(row: Row, pictures: Pictures, record: Record) -> Document:
    """OBELICS (https://huggingface.co/datasets/HuggingFaceM4/OBELICS) or The Cauldron: both have texts and images."""
    texts, images = row["texts"] or [], row["images"] or []
    record.pictures = sum(image is not None for image in images)
    if texts and isinstance(next((text for text in texts if text is not None), None), dict):
        return _questions(texts, images, pictures)
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


def _questions(texts: list[Any], images: list[Any], pictures: Pictures) -> Document:
    """The Cauldron and FineVision: all pictures, then turns of user and assistant."""
    turns = [Turn(role, turn.get(role)) for turn in texts for role in ("user", "assistant")]
    if not all(isinstance(turn.text, str) for turn in turns):
        raise Dropped("row whose turns are of no known form")
    return chat(turns, [pictures.get(image) for image in images])


def _conversation(row: Row, pictures: Pictures, record: Record) -> Document:
    images = row.get("image") or row.get("images") or []
    cells = images if isinstance(images, list) else [images]
    record.pictures = len(cells)
    turns = parse_turns(row.get("conversations") or row.get("messages"))
    if not turns:
        raise Dropped("conversation without turns, or with none of the known form")
    return chat(turns, [pictures.get(cell) for cell in cells])


def _addresses(rows: list[Row]) -> Iterator[str]:
    """The addresses of pictures in some rows."""
    for row in rows:
        cells = [row.get(name) for name in ADDRESS_COLUMNS] if "texts" not in row else []
        images = row.get("images")
        for cell in [*cells, *(images if isinstance(images, list) else [])]:
            if isinstance(cell, str) and "://" in cell:
                yield cell

"""Tables (parquet, data sets saved to disk) -> documents: captioned pictures, OBELICS, The Cauldron, chats, text."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mm1.document import Document, Image, Piece, Text
from mm1.prepare.fetch import WebError
from mm1.prepare.readers.folders import chat_pieces, turns_of
from mm1.prepare.shard import InputError, Part, find_picture, inside, parse_json

PICTURE_COLUMNS = ("image", "jpg", "png", "webp", "image_bytes", "img", "picture")
ADDRESS_COLUMNS = ("url", "URL", "image_url")
TEXT_COLUMNS = ("caption", "text", "TEXT", "txt", "captions", "alt_text")
_SAID = ("license", "licence", "url", "language", "date", "dump")

Row = dict[str, Any]
Layout = Callable[[Row, "Pictures"], Document | None]


class Pictures:
    """Pictures as tables hold them: bytes, {bytes, path}, a file's name, or an address."""

    def __init__(self, part: Part, drops: Counter[str]):
        self.part, self.drops = part, drops
        self._fetched: dict[str, bytes | WebError] = {}

    def get(self, found: Any) -> bytes | None:
        """The bytes; None, counted, when they cannot be had."""
        if isinstance(found, dict):
            found = found.get("bytes") or found.get("path")
        if isinstance(found, bytes):
            return found
        if not isinstance(found, str) or not found:
            self.drops["row without a picture"] += 1
            return None
        if "://" not in found:
            return find_picture(self.part, found, self.drops)
        if self.part.web is None:
            self.drops["picture by address only, not fetched (fetch=true fetches)"] += 1
            return None
        answer = self._fetched.pop(found, None) or self.part.web.fetch_all([found])[0]
        if isinstance(answer, bytes):
            return answer
        self.drops[str(answer)] += 1
        return None

    def has(self, name: Any) -> bool:
        """Whether a picture of this name lies beside the table."""
        return isinstance(name, str) and any(inside(folder, name) for folder in self.part.folders)

    def foresee(self, rows: list[Row]) -> None:
        """Fetches what the rows will ask for, several hosts at once."""
        if self.part.web is not None:
            wanted = list(dict.fromkeys(_addresses(rows)))
            self._fetched = dict(zip(wanted, self.part.web.fetch_all(wanted), strict=True))


def read_parquet(part: Part, drops: Counter[str]) -> Iterator[Document]:
    """The rows of a table, in whichever of the known layouts it has; 16 rows are held at a time.

    Raises:
        InputError: broken, or without the columns of any layout.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = part.files[0]
    try:
        with pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
            names = file.schema_arrow.names
            rows = (batch.to_pylist() for batch in file.iter_batches(batch_size=16))
            yield from documents_of_rows(rows, names, part=part, drops=drops)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise InputError(f"{path.name} is no readable parquet file: {error}") from error


def read_dataset(part: Part, drops: Counter[str]) -> Iterator[Document]:
    """The rows of a data set that `datasets` saved to disk, in whichever of the known layouts it has.

    Its Arrow files are read as they are, 16 rows at a time, so that pictures stay undecoded.

    Raises:
        InputError: broken, or without the columns of any layout.
    """
    import pyarrow as pa

    path = part.files[0]
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
            starts = ((batch, start) for batch in stream for start in range(0, batch.num_rows, 16))
            rows = (batch.slice(start, 16).to_pylist() for batch, start in starts)
            yield from documents_of_rows(rows, stream.schema.names, part=part, drops=drops)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path.name} is no Arrow file of a saved data set: {error}") from error


def documents_of_rows(
    batches: Iterable[list[Row]], names: list[str], *, part: Part, drops: Counter[str]
) -> Iterator[Document]:
    """One document a row, in the layout that the columns' names tell."""
    layout, pictures = layout_of(names, part.name), Pictures(part, drops)
    number = 0
    for rows in batches:
        pictures.foresee(rows)
        for row in rows:
            number += 1
            document = layout(row, pictures)
            if document is None:
                drops["row of no known form, or with nothing in it"] += 1
                continue
            said = {key: str(row[key]) for key in _SAID if row.get(key)}
            name = f"{part.name}/{number - 1}"
            yield Document(document.pieces, id=name, metadata={**said, **document.metadata})


def layout_of(names: Iterable[str], title: str) -> Layout:
    """How rows with these columns become documents.

    Raises:
        InputError: no known layout has them.
    """
    have = set(names)
    if {"texts", "images"} <= have:
        return _lists
    if have & {"conversations", "messages"}:
        return _chat
    pictured = next((n for n in (*PICTURE_COLUMNS, *ADDRESS_COLUMNS) if n in have), None)
    said = next((n for n in TEXT_COLUMNS if n in have), None)
    if said is None:
        raise InputError(
            f"{title} has the columns {', '.join(sorted(have))}; expected texts and images (OBELICS, The Cauldron), "
            f"conversations, or a text column ({', '.join(TEXT_COLUMNS)}) with or without a picture column "
            f"({', '.join((*PICTURE_COLUMNS, *ADDRESS_COLUMNS))})"
        )
    web_text = pictured in ADDRESS_COLUMNS and have & {"dump", "token_count", "minhash_cluster_size"}
    if pictured is None or web_text:  # FineWeb's url is the page's, not a picture's
        return lambda row, _: _text(row[said])
    return lambda row, pictures: _pair(row[said], row[pictured], pictures)


def _text(found: Any) -> Document | None:
    return Document((Text(found),)) if isinstance(found, str) and found.strip() else None


def _pair(said: Any, pictured: Any, pictures: Pictures) -> Document | None:
    caption = said[0] if isinstance(said, list) and said else said
    if not isinstance(caption, str) or not caption.strip():
        return None
    data = pictures.get(pictured)
    return None if data is None else Document((Image(data), Text(" ".join(caption.split()))))


def _lists(row: Row, pictures: Pictures) -> Document | None:
    """OBELICS (https://huggingface.co/datasets/HuggingFaceM4/OBELICS) or The Cauldron: both have texts and images."""
    texts, images = row["texts"] or [], row["images"] or []
    if texts and isinstance(next((text for text in texts if text is not None), None), dict):
        return _questions(texts, images, pictures)
    if len(texts) != len(images):
        return None
    pieces: list[Piece] = []
    for text, image in zip(texts, images, strict=True):
        if isinstance(text, str) and text.strip():
            pieces.append(Text(text if text.endswith("\n") else text + "\n\n"))
        elif image is not None:
            data = pictures.get(image)
            pieces += [] if data is None else [Image(data)]
    said = parse_json(row.get("general_metadata") or "")
    url = said.get("url") if isinstance(said, dict) else None
    return Document(tuple(pieces), metadata={"url": url} if isinstance(url, str) else {}) if pieces else None


def _questions(texts: list[Any], images: list[Any], pictures: Pictures) -> Document | None:
    """The Cauldron and FineVision: all pictures, then turns of user and assistant."""
    data = [pictures.get(image) for image in images]
    turns = [(answer, turn.get(key)) for turn in texts for answer, key in ((False, "user"), (True, "assistant"))]
    if None in data or not all(isinstance(text, str) for _, text in turns):
        return None
    pieces: list[Piece] = [Image(picture) for picture in data if picture is not None]
    pieces += [Text(text, train=answer) for answer, text in turns]
    return Document(tuple(pieces), metadata={"form": "chat"})


def _chat(row: Row, pictures: Pictures) -> Document | None:
    turns = turns_of(row.get("conversations") or row.get("messages"))
    named = row.get("image") or row.get("images") or []
    data = [pictures.get(one) for one in (named if isinstance(named, list) else [named])]
    if not turns or None in data:
        return None
    pieces = chat_pieces(turns, [picture for picture in data if picture is not None])
    return None if pieces is None else Document(tuple(pieces), metadata={"form": "chat"})


def _addresses(rows: list[Row]) -> Iterator[str]:
    """The addresses of pictures in some rows."""
    for row in rows:
        named = [row.get(name) for name in ADDRESS_COLUMNS] if "texts" not in row else []
        listed = row.get("images")
        for found in [*named, *(listed if isinstance(listed, list) else [])]:
            if isinstance(found, str) and "://" in found:
                yield found

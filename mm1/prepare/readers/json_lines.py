"""Files of JSON lines -> documents: plain text as Dolma and FineWeb hold it, and MMC4's interleaved pages."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from mm1.document import Document, Image, Piece, Text
from mm1.prepare.readers.tables import Pictures
from mm1.prepare.shard import LARGEST_FILE, InputError, Part, lines_of, objects_of

_SAID = ("license", "licence", "url", "language", "added", "created", "dump")


def read_text(part: Part, drops: Counter[str]) -> Iterator[Document]:
    """One document for each line `{"text": ..., "id": ...}`; for each file of plain text, one.

    Dolma's format: https://github.com/allenai/dolma/blob/main/docs/data-format.md

    Raises:
        InputError: a packed file breaks off, or no line of the file has a text.
    """
    path = part.files[0]
    if ".json" not in path.name.lower():
        whole = bytearray()
        for line in lines_of(path, drops):
            whole += line
            if len(whole) > LARGEST_FILE:
                drops[f"file of more than {LARGEST_FILE >> 20} MB"] += 1
                return
        if whole.strip():
            yield Document((Text(whole.decode("utf-8", "replace")),), id=part.name)
        return
    found = seen = 0
    for number, entry in enumerate(objects_of(path, drops)):
        seen += 1
        text = entry.get("text", entry.get("content"))
        if not isinstance(text, str) or not text.strip():
            drops["line without a text"] += 1
            continue
        found += 1
        said = {**_flat(entry.get("metadata")), **_flat(entry)}
        metadata = {key: value for key, value in said.items() if key in _SAID}
        yield Document((Text(text),), id=f"{part.name}/{entry.get('id', number)}", metadata=metadata)
    if seen and not found:
        raise InputError(f"{path.name}: none of its {seen} lines has a text; expected objects with the key text")


def read_mmc4(part: Part, drops: Counter[str]) -> Iterator[Document]:
    """Pages of MMC4: each picture stands before the sentence it was matched with (arXiv 2304.06939, section 3).

    Pictures are looked for by `image_name` beside the file, and fetched by `raw_url` where that is allowed.
    """
    pictures = Pictures(part, drops)
    for number, entry in enumerate(objects_of(part.files[0], drops)):
        sentences, images = entry.get("text_list"), entry.get("image_info")
        if not isinstance(sentences, list) or not _strings(sentences) or not isinstance(images, list):
            drops["line that is no page of MMC4 (text_list, image_info)"] += 1
            continue
        before: dict[Any, list[bytes]] = {}
        for image in images:
            data = _picture(image, pictures) if isinstance(image, dict) else None
            if data is not None:
                before.setdefault(image.get("matched_text_index"), []).append(data)
        pieces: list[Piece] = []
        for place, sentence in enumerate(sentences):
            pieces += [Image(data) for data in before.get(place, [])]
            pieces.append(Text(sentence + "\n"))
        url = entry.get("url")
        metadata = {"url": url} if isinstance(url, str) else {}
        yield Document(tuple(pieces), id=f"{part.name}/{number}", metadata=metadata)


def _picture(image: dict[str, Any], pictures: Pictures) -> bytes | None:
    name = image.get("image_name")
    if pictures.part.web is None or pictures.has(name):
        return pictures.get(name)
    return pictures.get(image.get("raw_url"))


def _strings(found: list[Any]) -> bool:
    return bool(found) and all(isinstance(one, str) for one in found)


def _flat(found: Any) -> dict[str, str]:
    return {key: str(value) for key, value in found.items() if value} if isinstance(found, dict) else {}

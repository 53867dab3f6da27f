"""Reads files of JSON lines: plain text as Dolma and FineWeb hold it, and MMC4's interleaved pages."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from mm1.document import Document, Image, Piece, Text
from mm1.prepare.bounded_read import LARGEST_FILE, read_json_lines, read_lines
from mm1.prepare.readers.tables import Pictures
from mm1.prepare.shard import InputError, Shard

_METADATA = ("license", "licence", "url", "language", "added", "created", "dump")


def read_text(shard: Shard, drops: Counter[str]) -> Iterator[Document]:
    """One document per line `{"text": ..., "id": ...}`; one per file of plain text.

    Dolma's format: https://github.com/allenai/dolma/blob/main/docs/data-format.md

    Raises:
        InputError: a compressed file breaks off, or no line of the file has a text.
    """
    path = shard.files[0]
    if ".json" not in path.name.lower():
        content = bytearray()
        for line in read_lines(path, drops):
            content += line
            if len(content) > LARGEST_FILE:
                drops[f"file of more than {LARGEST_FILE >> 20} MB"] += 1
                return
        if content.strip():
            yield Document((Text(content.decode("utf-8", "replace")),), id=shard.name)
        return
    lines = texts = 0
    for number, entry in enumerate(read_json_lines(path, drops)):
        lines += 1
        text = entry.get("text", entry.get("content"))
        if not isinstance(text, str) or not text.strip():
            drops["line without a text"] += 1
            continue
        texts += 1
        fields = {**_as_strings(entry.get("metadata")), **_as_strings(entry)}
        metadata = {key: value for key, value in fields.items() if key in _METADATA}
        yield Document((Text(text),), id=f"{shard.name}/{entry.get('id', number)}", metadata=metadata)
    if lines and not texts:
        raise InputError(f"{path.name}: none of its {lines} lines has a text; expected objects with the key text")


def read_mmc4(shard: Shard, drops: Counter[str]) -> Iterator[Document]:
    """Pages of MMC4: each picture stands before the sentence it was matched with (arXiv 2304.06939, section 3).

    Pictures are looked for by `image_name` beside the file, and fetched by `raw_url` if that is allowed.
    """
    pictures = Pictures(shard, drops)
    for number, entry in enumerate(read_json_lines(shard.files[0], drops)):
        sentences, images = entry.get("text_list"), entry.get("image_info")
        if not isinstance(sentences, list) or not _are_strings(sentences) or not isinstance(images, list):
            drops["line that is no page of MMC4 (text_list, image_info)"] += 1
            continue
        before: dict[Any, list[bytes]] = {}  # pictures by the number of their sentence
        for image in images:
            data = _picture(image, pictures) if isinstance(image, dict) else None
            if data is not None:
                before.setdefault(image.get("matched_text_index"), []).append(data)
        pieces: list[Piece] = []
        for index, sentence in enumerate(sentences):
            pieces += [Image(data) for data in before.get(index, [])]
            pieces.append(Text(sentence + "\n"))
        url = entry.get("url")
        metadata = {"url": url} if isinstance(url, str) else {}
        yield Document(tuple(pieces), id=f"{shard.name}/{number}", metadata=metadata)


def _picture(image: dict[str, Any], pictures: Pictures) -> bytes | None:
    name = image.get("image_name")
    if pictures.shard.fetcher is None or pictures.has(name):
        return pictures.get(name)
    return pictures.get(image.get("raw_url"))


def _are_strings(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, str) for value in values)


def _as_strings(value: Any) -> dict[str, str]:
    return {key: str(entry) for key, entry in value.items() if entry} if isinstance(value, dict) else {}

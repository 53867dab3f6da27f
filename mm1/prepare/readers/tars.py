"""Reads tars of samples, as img2dataset and DataComp write them.

The files of one sample stand together and share their name up to the first dot (WebDataset), or up to the last if the
user says so: 000000017.jpg, 000000017.txt, 000000017.json. https://github.com/rom1504/img2dataset#output-format
"""

import lzma
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mm1.document import Document, Image, Text
from mm1.prepare.bounded_read import LARGEST_FILE, decode_text, parse_json, unpacked
from mm1.prepare.ledger import Dropped, Ledger, MissingImage, Record
from mm1.prepare.readers.chats import conversation
from mm1.prepare.readers.pictures import Pictures
from mm1.prepare.readers.table_layouts import captions_of
from mm1.prepare.shard import InputError, ReadOptions, Shard

TAR_ENDINGS = (*(".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"), *(".tgz", ".tbz2", ".txz"))
"""Endings of the names of tars."""

_PACKED = {".tgz": ".gz", ".tbz2": ".bz2", ".txz": ".xz"} | {one: one for one in (".gz", ".bz2", ".xz", ".zst")}

_PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "avif", "bmp", "tif", "tiff")
_TEXTS = ("txt", "text", "caption")
_METADATA = ("license", "licence", "url", "author", "language")
_MOST_FILES = 16  # of a sample, which has three
_LARGEST_HEADER = 2**20  # bytes
_TOO_LARGE = f"member of more than {LARGEST_FILE >> 20} MB, or of a sample of too many files"
_FURTHER = "further picture of a sample, beside the one that is read"
_OF_MACOS = "file that macOS added (._*, .DS_Store)"
_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


def read_tars(shard: Shard, ledger: Ledger) -> Iterator[Document]:
    """The picture and the caption of each sample of a tar, or the chat in its JSON; nothing is written to disk.

    Raises:
        InputError: the tar is broken or breaks off.
    """
    pictures = Pictures(shard)
    for sample in _samples(shard, ledger):
        content, fields = None, _fields(sample)
        with ledger.record(f"sample {sample.key}", sample.files) as record:
            if turns := _turns(fields):
                named = {"image": _own_pictures(sample) or fields.get("image")}
                document = conversation(fields | named, turns, pictures, record)
                metadata = document.metadata | _metadata(fields)
                yield replace(document, id=f"{shard.name}/{sample.key}", metadata=metadata)
                continue
            content = _content(sample, fields, shard.options, record=record)
            if "image" not in shard.options.columns:
                ledger.skipped += Counter({_FURTHER: len(_picture_endings(sample)) - 1})
            yield _document(content, 0, f"{shard.name}/{sample.key}")
        for number in range(1, len(content.captions) if content else 0):
            with ledger.record(f"sample {sample.key}, caption {number + 1}", content.captions[number], pictures=1):
                yield _document(content, number, f"{shard.name}/{sample.key}/{number}")


@dataclass(slots=True)
class _Sample:
    """The files of a sample by their ending; `too_large` are endings of files that were left unread."""

    key: str
    files: dict[str, bytes] = field(default_factory=dict)
    too_large: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Content:
    """The picture of a sample, and its captions, each of which makes a document."""

    image: Image
    captions: list[str]
    metadata: dict[str, str]


def _document(content: _Content, number: int, document_id: str) -> Document:
    return Document((content.image, Text(content.captions[number])), id=document_id, metadata=content.metadata)


def _fields(sample: _Sample) -> dict[str, Any]:
    """What the JSON of a sample says; a list is that of the turns of a chat, as Megatron-Energon's users write it."""
    fields = parse_json(sample.files["json"]) if "json" in sample.files else None
    if isinstance(fields, list):
        return {"conversations": fields}
    return fields if isinstance(fields, dict) else {}


def _turns(fields: dict[str, Any]) -> list[Any]:
    """The turns of the chat in a sample, if it holds one."""
    turns = fields.get("conversations") or fields.get("messages")
    turns = parse_json(turns) if isinstance(turns, str) else turns
    return turns if isinstance(turns, list) else []


def _metadata(fields: dict[str, Any]) -> dict[str, str]:
    return {key: str(fields[key]) for key in _METADATA if fields.get(key)}


def _picture_endings(sample: _Sample) -> list[str]:
    return [name for name in (*sample.files, *sample.too_large) if name.rpartition(".")[2] in _PICTURES]


def _own_pictures(sample: _Sample) -> list[bytes]:
    """The pictures of a sample; an empty one for each that is too large."""
    return [sample.files.get(name, b"") for name in _picture_endings(sample)]


def _content(sample: _Sample, fields: dict[str, Any], options: ReadOptions, *, record: Record) -> _Content:
    record.pictures = len(_picture_endings(sample))
    picture = options.columns.get("image") or _ending(sample, _PICTURES)
    data = sample.files.get(picture)
    record.pictures = int(picture in sample.files or picture in sample.too_large)
    text = options.columns.get("text") or _ending(sample, _TEXTS)
    if text in sample.files:
        captions = list(captions_of(decode_text(sample.files[text])))
    else:
        captions = list(captions_of(fields.get(text) or fields.get("caption") or fields.get("text")))
    captions = [" ".join(caption.split()) for caption in captions]
    record.content = captions
    if not record.pictures:
        raise Dropped("sample without a picture", detail=", ".join(sample.files))
    if not captions:
        raise Dropped("sample without a caption", detail=", ".join(sample.files))
    image = MissingImage(reason=_TOO_LARGE, name=f"{sample.key}.{picture}") if data is None else Image(data)
    return _Content(image, captions, _metadata(fields))


def _ending(sample: _Sample, endings: tuple[str, ...]) -> str:
    """The ending in a sample of the file that has one of these, with what stands before it after the first dot.

    Raises:
        Dropped: there are several with dots in their names, of samples that the first dot doesn't tell apart.
    """
    there = [*sample.files, *sample.too_large]
    exact = next((ending for ending in endings if ending in there), None)
    if exact is not None:
        return exact
    dotted = [name for name in there if name.rpartition(".")[2] in endings]
    if len(dotted) > 1:
        names = ", ".join(f"{sample.key}.{name}" for name in dotted[:3])
        raise Dropped("sample whose names have more than one dot (--key last-dot, or columns=)", detail=names)
    return dotted[0] if dotted else ""


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
    by_last_dot = shard.options.key == "last-dot"
    try:
        with ExitStack() as files:
            tar = files.enter_context(_open_tar(path, files))
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # the library keeps all of them, whatever the tar's size
                folder, _, name = member.name.rpartition("/")
                if member.isdir():
                    continue
                if name.startswith("._") or name == ".DS_Store":
                    ledger.skipped[_OF_MACOS] += 1
                    ledger.expected.add(_OF_MACOS)
                    continue
                if not member.isfile():
                    ledger.skipped["member of a tar that is a link or no file"] += 1
                    continue
                stem, _, ending = name.rpartition(".") if by_last_dot else name.partition(".")
                key = f"{folder}/{stem}".lstrip("/").encode("utf-8", "replace").decode()
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample
                    sample = _Sample(key)
                file = tar.extractfile(member)
                if member.size > LARGEST_FILE or len(sample.files) > _MOST_FILES or file is None:
                    sample.too_large.append(ending.lower())
                    if ending.lower() not in _PICTURES:
                        ledger.skipped[_TOO_LARGE] += 1
                    continue
                sample.files[ending.lower()] = file.read()
    except InputError:
        raise
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error, ValueError) as error:
        raise InputError(f"{path.name} is no tar, or breaks off: {error}") from error
    if sample is not None:
        yield sample
    if path.suffix == ".tar" and not _has_end(path):
        ledger.skipped["tar without its end: more may have been in it"] += 1


def _open_tar(path: Path, files: ExitStack) -> tarfile.TarFile:
    """The tar in a file. A packed one is unpacked apart: `tarfile` ends quietly where one breaks off at a header."""
    kind = _PACKED.get(path.suffix.lower())
    if kind is None:
        return tarfile.open(path, mode="r|*", tarinfo=_Member)
    return tarfile.open(fileobj=files.enter_context(unpacked(path, kind)), mode="r|", tarinfo=_Member)


def _has_end(path: Path) -> bool:
    """Whether a tar ends with a block of zeros, as it should."""
    with path.open("rb") as file:
        file.seek(-tarfile.BLOCKSIZE, 2)
        return not any(file.read())

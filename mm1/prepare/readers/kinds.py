"""The kinds of input: which reader reads each, how its files become shards, and how the kind is detected.

A reader takes one `Shard` and yields `Document`s with their pictures undecoded. It opens a record of the ledger for
each document, and raises `Dropped` in it for one that it leaves out.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from mm1.document import Document
from mm1.prepare.bounded_read import parse_json, read_lines
from mm1.prepare.fetch import Fetcher
from mm1.prepare.ledger import Ledger
from mm1.prepare.readers.folders import PICTURE_ENDINGS, read_coco, read_llava, read_pairs
from mm1.prepare.readers.json_lines import read_mmc4, read_text
from mm1.prepare.readers.tables import read_dataset, read_parquet
from mm1.prepare.readers.tars import read_tars
from mm1.prepare.readers.task_chats import PREFIX, read_documents
from mm1.prepare.readers.web import read_html, read_warc
from mm1.prepare.shard import InputError, Shard, find_files, shard_per_file

Kind = Literal[
    "tars", "parquet", "mmc4", "llava", "coco", "text", "pairs", "dataset", "html", "warc", "task", "rendered_text"
]
Reader = Callable[[Shard, Ledger], Iterator[Document]]

READERS: dict[str, Reader] = {
    "tars": read_tars,
    "parquet": read_parquet,
    "mmc4": read_mmc4,
    "llava": read_llava,
    "coco": read_coco,
    "text": read_text,
    "pairs": read_pairs,
    "dataset": read_dataset,
    "html": read_html,
    "warc": read_warc,
    "task": read_documents,
    "rendered_text": read_documents,
}

PAGES = "rendered_text"
"""The input that stands for pages rendered from the texts of a store."""

NOT_FILES = ("task", PAGES)
"""The kinds whose documents are made, not read from files."""

_JSON_LINES = tuple(f".jsonl{packed}" for packed in ("", ".gz", ".zst", ".bz2", ".zip"))
_TEXTS = tuple(f"{e}{packed}" for e in (".jsonl", ".json", ".txt", ".ndjson") for packed in ("", ".gz", ".zst", ".bz2"))
_ENDINGS: dict[str, tuple[str, ...]] = {
    "tars": (".tar", ".tar.gz", ".tgz"),
    "parquet": (".parquet",),
    "mmc4": _JSON_LINES,
    "llava": (".json", ".jsonl"),
    "coco": (".json",),
    "text": _TEXTS,
    "pairs": PICTURE_ENDINGS,
    "dataset": (".arrow",),
    "html": (".html", ".htm", ".xhtml"),
    "warc": (".warc", ".warc.gz"),
}
_SMALL_FILES = ("pairs", "html")  # kinds with many files in a shard
_FILES_PER_SHARD = 500
_KEYS = ("text_list", "image_info", "conversations", "messages", "images", "annotations", "info", "licenses", "text")


def list_shards(path: Path, kind: str, *, pictures: Path | None = None, fetcher: Fetcher | None = None) -> list[Shard]:
    """The shards of the input, in the order of their names.

    Raises:
        InputError: the input is missing, has no file that the kind's reader reads, or the kind is not read from files.
    """
    if kind in NOT_FILES:
        raise InputError(f"kind {kind!r} is not read from {path}: its inputs are {PREFIX}NAME and {PAGES}")
    _check_exists(path)
    endings = _ENDINGS[kind]
    if kind in _SMALL_FILES:
        files = find_files(path, *endings)
        root = path if path.is_dir() else path.parent
        groups = [tuple(files[at : at + _FILES_PER_SHARD]) for at in range(0, len(files), _FILES_PER_SHARD)]
        shards = [Shard(f"{path.name} {number}", root, group, pictures) for number, group in enumerate(groups)]
    else:
        shards = shard_per_file(path, *endings, pictures=pictures)
    if not shards:
        raise InputError(f"{path} has no file for kind {kind!r}: expected names that end in {', '.join(endings)}")
    return [replace(shard, fetcher=fetcher, kind=kind) for shard in shards]


def detect_kind(path: Path) -> str:
    """The kind of the input, from the names of its files and the first object of a JSON file.

    Raises:
        InputError: the input is missing, or of no known kind; the message says how to name the kind.
    """
    if str(path).startswith(PREFIX):
        return "task"
    if str(path) == PAGES and not path.exists():
        return PAGES
    _check_exists(path)
    for kind in ("tars", "warc", "dataset", "parquet", "html"):  # img2dataset puts parquet beside its tars
        if find_files(path, *_ENDINGS[kind]):
            return kind
    texts = find_files(path, *_TEXTS, *_JSON_LINES)
    json_kind = next(filter(None, map(_detect_json_kind, texts)), None)
    if json_kind:
        return json_kind
    pictures = find_files(path, *PICTURE_ENDINGS)
    if any(picture.with_suffix(".txt").is_file() for picture in pictures):
        return "pairs"
    if texts:
        return "text"
    raise InputError(f"cannot detect the kind of {path}; name it with --kind, one of {', '.join(get_args(Kind))}")


def _detect_json_kind(path: Path) -> str | None:
    """The kind of a JSON file, from its first object; None for other files."""
    if ".json" not in path.name.lower():
        return None
    try:
        head = next(read_lines(path, Ledger()), (0, b""))[1][: 2**20].decode("utf-8", "replace").lstrip("\ufeff \n[")
        more = "" if path.suffix != ".json" else path.open(encoding="utf-8", errors="replace").read(2**16)
    except (InputError, OSError):
        return None
    first = parse_json(head.rstrip().rstrip(",]"))
    keys = set(first) if isinstance(first, dict) else {key for key in _KEYS if f'"{key}"' in head + more}
    if {"text_list", "image_info"} <= keys:
        return "mmc4"
    if keys & {"conversations", "messages"}:
        return "llava"
    if {"images", "annotations"} <= keys or {"images", "info", "licenses"} <= keys:
        return "coco"
    return "text" if "text" in keys else None


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise InputError(f"there is no {path}; expected a file or a folder")

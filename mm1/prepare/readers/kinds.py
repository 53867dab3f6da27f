"""The kinds of input: which reader reads each, how its files become shards, and how the kind is detected.

A reader takes one `Shard` and yields `Document`s with their pictures undecoded. It opens a record of the ledger for
each document, and raises `Dropped` in it for one that it leaves out.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from mm1.document import Document
from mm1.prepare.bounded_read import PACKED
from mm1.prepare.fetch import Fetcher
from mm1.prepare.ledger import Ledger
from mm1.prepare.readers.coco import read_coco
from mm1.prepare.readers.detect import (
    check_exists,
    describe_files,
    detect_json_kind,
    files_of_split,
    is_metadata,
    is_page,
    unread_files,
)
from mm1.prepare.readers.folders import PICTURE_ENDINGS, caption_file, read_llava, read_pairs
from mm1.prepare.readers.json_lines import read_mmc4, read_text
from mm1.prepare.readers.mixture import mixture_shards, read_sampled
from mm1.prepare.readers.rows import read_imagefolder, read_rows
from mm1.prepare.readers.tables import read_dataset, read_parquet
from mm1.prepare.readers.tars import TAR_ENDINGS, read_tars
from mm1.prepare.readers.task_chats import PREFIX, read_documents
from mm1.prepare.readers.web import read_html, read_warc
from mm1.prepare.shard import InputError, ReadOptions, Shard, find_files

Kind = Literal[
    "tars",
    "parquet",
    "mmc4",
    "llava",
    "mixture",
    "coco",
    "text",
    "pairs",
    "imagefolder",
    "rows",
    "dataset",
    "html",
    "warc",
    "task",
    "rendered_text",
]
Reader = Callable[[Shard, Ledger], Iterator[Document]]

READERS: dict[str, Reader] = {
    "tars": read_tars,
    "parquet": read_parquet,
    "mmc4": read_mmc4,
    "llava": read_llava,
    "mixture": read_sampled,
    "coco": read_coco,
    "text": read_text,
    "pairs": read_pairs,
    "imagefolder": read_imagefolder,
    "rows": read_rows,
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


def _or_packed(*endings: str) -> tuple[str, ...]:
    return tuple(f"{ending}{packed}" for ending in endings for packed in ("", *PACKED))


_JSON = _or_packed(".jsonl", ".json", ".ndjson")
_TEXTS = (*_JSON, *_or_packed(".txt"))
_TABLES = _or_packed(".csv", ".tsv")
_ENDINGS: dict[str, tuple[str, ...]] = {
    "tars": TAR_ENDINGS,
    "parquet": (".parquet",),
    "mmc4": _or_packed(".jsonl"),
    "llava": _JSON,
    "mixture": (".yaml", ".yml"),
    "coco": _or_packed(".json"),
    "text": _TEXTS,
    "pairs": PICTURE_ENDINGS,
    "imagefolder": ("metadata.jsonl", "metadata.csv", "metadata.parquet"),
    "rows": (*_TABLES, *_JSON),
    "dataset": (".arrow",),
    "html": (".html", ".htm", ".xhtml"),
    "warc": (".warc", ".warc.gz", ".warc.zst"),
}
_SMALL_FILES = ("pairs", "html")  # kinds with many files in a shard
_FILES_PER_SHARD = 500


def list_shards(
    path: Path,
    kind: str,
    *,
    pictures: Path | None = None,
    fetcher: Fetcher | None = None,
    options: ReadOptions | None = None,
) -> list[Shard]:
    """The shards of the input, in the order of their names.

    Raises:
        InputError: the input is missing, or has no file that the kind's reader reads, or none of the split; or the
            kind is not read from files.
    """
    if kind in NOT_FILES:
        raise InputError(f"kind {kind!r} is not read from {path}: its inputs are {PREFIX}NAME and {PAGES}")
    check_exists(path)
    options = options or ReadOptions()
    endings = _ENDINGS[kind]
    root = path if path.is_dir() else path.parent
    files, options = files_of_split(_files(path, kind), root, kind, options)
    if not files:
        raise InputError(f"{path} has no file for kind {kind!r}: expected names that end in {', '.join(endings)}")
    if kind == "mixture":
        shards = [shard for file in files for shard in mixture_shards(file, pictures=pictures)]
    elif kind in _SMALL_FILES:
        groups = [tuple(files[at : at + _FILES_PER_SHARD]) for at in range(0, len(files), _FILES_PER_SHARD)]
        shards = [Shard(f"{path.name} {number}", root, group, pictures) for number, group in enumerate(groups)]
    else:
        shards = [Shard(file.relative_to(root).as_posix(), root, (file,), pictures) for file in files]
    skipped = tuple(unread_files(path, kind, endings, files)) if path.is_dir() else ()
    return [
        replace(shard, fetcher=fetcher, kind=kind, options=options, skipped=() if number else skipped)
        for number, shard in enumerate(shards)
    ]


def _files(path: Path, kind: str) -> list[Path]:
    """The files of a kind. `datasets` leaves what it has computed (cache-*.arrow) beside what it has saved."""
    if kind == "html" and path.is_dir():
        pages = set(find_files(path, *_ENDINGS[kind]))
        return [file for file in find_files(path, "") if file in pages or is_page(file)] if pages else []
    files = find_files(path, *_ENDINGS[kind])
    if kind == "imagefolder" and path.is_dir():
        files = [file for file in files if file.name.lower() in _ENDINGS[kind]]
    if kind == "dataset" and path.is_dir():
        files = [file for file in files if not file.name.startswith(("cache-", "tmp"))]
    return files


def detect_kind(path: Path) -> str:
    """The kind of the input, from the names of its files and the first object of a JSON file.

    Raises:
        InputError: the input is missing, or of no known kind; the message says how to name the kind.
    """
    if str(path).startswith(PREFIX):
        return "task"
    if str(path) == PAGES and not path.exists():
        return PAGES
    check_exists(path)
    if any(map(is_metadata, _files(path, "imagefolder"))):
        return "imagefolder"
    for kind in ("tars", "warc", "dataset", "parquet", "html"):  # img2dataset puts parquet beside its tars
        if _files(path, kind):
            return kind
    if path.is_file() and path.suffix.lower() in _ENDINGS["mixture"]:
        return "mixture"
    texts = find_files(path, *_TEXTS)
    json_kind = next(filter(None, map(detect_json_kind, texts)), None)
    if json_kind:
        return json_kind
    pictures = find_files(path, *PICTURE_ENDINGS)
    if any(map(caption_file, pictures)):
        return "pairs"
    if find_files(path, *_TABLES):
        return "rows"
    if texts:
        return "text"
    kinds = ", ".join(get_args(Kind))
    there = describe_files(path)
    message = f"cannot detect the kind of {path}, which has {there}; "
    if pictures:
        name = Path(pictures[0].name)
        message += (
            f"its pictures have no captions: write one beside each ({name.with_suffix('.txt')} beside {name}), or all "
            "into a metadata.csv with the columns file_name and text; or "
        )
    raise InputError(f"{message}name it with --kind, one of {kinds}")

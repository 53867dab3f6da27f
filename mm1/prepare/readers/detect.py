"""What stands in the files of an input: the kind of a JSON file, the split of a file, and what no reader reads."""

import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from mm1.prepare.bounded_read import parse_json, read_head, text_encoding
from mm1.prepare.images import IN_HEIC
from mm1.prepare.readers.chats import has_instructions
from mm1.prepare.readers.folders import PICTURE_ENDINGS
from mm1.prepare.readers.rows import NAMES_OF_FILES, csv_columns
from mm1.prepare.readers.table_layouts import PICTURE_COLUMNS, TEXT_COLUMNS
from mm1.prepare.readers.web import PACKED_PAGES
from mm1.prepare.shard import InputError, ReadOptions, find_files

_HEAD = 2**20  # bytes of a JSON file in which its kind shows
_SPLITS = ("train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval", "restval")
_HOLD_SPLITS = ("coco", "parquet", "dataset", "rows", "imagefolder")  # kinds whose records may name their split
_HEAD_OF_PAGE = 4096
_PAGE = re.compile(rb"<(!doctype\s+html|html[\s>])", re.IGNORECASE)
_BEFORE_PAGES = {b"<?xml": b">", b"<!--": b"-->"}  # what may stand there, and how it ends
_DATA = r"(tar|parquet|arrow|warc|html?|jsonl|ndjson|csv|tsv|tfrecord|mdb|npy|h5|pkl|xlsx?)(\.(gz|bz2|xz|zst|zip))?|tgz"
_OF_SITES = r"json|pdf|epub|docx?|zip|rar|7z|gz|bz2|xz|zst|mp4|mov|webm|svg"  # linked by pages, so no loss of a site
_PICTURES = r"jpe?g|png|webp|gif|bmp|tiff?|avif|hei[cf]|jxl|tga|psd|dng|cr2|nef"
_UNREAD = dict.fromkeys(("pairs", "imagefolder"), rf"\.({_DATA}|{_OF_SITES}|hei[cf]|jxl|tga|psd|dng|cr2|nef)$")
_UNREAD |= dict.fromkeys(("tars", "warc", "text"), rf"\.({_DATA}|{_OF_SITES}|{_PICTURES})$")
_UNREAD["html"] = rf"\.({_DATA})$"
_BESIDE = {
    "tars": (".parquet", ".json"),
    "pairs": (".parquet", ".json"),
    "mixture": (".json", ".jsonl"),
    "dataset": (".json",),
    "parquet": (".json",),
}
"""Files that the writers of a kind put beside their data."""


def check_exists(path: Path) -> None:
    """Returns if the input is there. Raises InputError if it is not."""
    if not path.exists():
        hint = ""
        if re.fullmatch(r"(https?:/.*|[\w.-]+/[\w.-]+)", str(path)) and not path.parent.exists():
            hint = "; download a data set of the Hugging Face hub first: hf download --repo-type dataset OWNER/NAME"
        raise InputError(f"there is no {path}; expected a file or a folder{hint}")


def detect_json_kind(path: Path) -> str | None:
    """The kind of a JSON file, from its first object; None for other files."""
    if ".json" not in path.name.lower() and ".ndjson" not in path.name.lower():
        return None
    try:
        head = read_head(path, _HEAD)
    except (InputError, OSError):
        return None
    text = head.decode(text_encoding(head) or "utf-8", "replace").lstrip("\ufeff \r\n\t")
    keys = _first_keys(text)
    if {"text_list", "image_info"} <= keys:
        return "mmc4"
    of_sharegpt = "items" in keys and '"from"' in text and '"value"' in text
    if keys & {"conversations", "messages"} or of_sharegpt:
        return "llava"
    if has_instructions(keys):  # a row without an instruction may be a text
        return "rows" if keys & set(TEXT_COLUMNS) else "llava"
    if "images" in keys and (keys & {"annotations", "licenses"} or '"sentences"' in text):
        return "coco"
    captions = keys & (set(TEXT_COLUMNS) - {"text", "raw"})
    if (keys & set(PICTURE_COLUMNS) and keys & set(TEXT_COLUMNS)) or ("url" in keys and captions):
        return "rows"
    return "text" if keys & {"text", "content"} else None


def _first_keys(head: str) -> set[str]:
    """The keys of the first object of a JSON text, or all that are written in its head if the object is longer."""
    start = head.find("{") if head.startswith("[") else 0
    try:
        first, _ = json.JSONDecoder().raw_decode(head, max(0, start))
    except (ValueError, RecursionError):
        return set(re.findall(r'"([A-Za-z_]{1,40})"\s*:', head[: 2**17]))
    return set(first) if isinstance(first, dict) else set()


def is_metadata(path: Path) -> bool:
    """Whether a file is the metadata of an `imagefolder`: it names its pictures in a column `file_name` or its kin."""
    name = path.name.lower()
    try:
        if name.endswith(".csv"):
            columns = csv_columns(path)
        elif name.endswith(".parquet"):
            import pyarrow.parquet as pq

            columns = pq.read_schema(path).names
        else:
            first = parse_json(read_head(path, _HEAD).removeprefix(b"\xef\xbb\xbf").partition(b"\n")[0])
            columns = list(first) if isinstance(first, dict) else []
        return any(column.endswith(NAMES_OF_FILES) for column in columns)
    except (InputError, OSError, ValueError):
        return False


def files_of_split(files: list[Path], root: Path, kind: str, options: ReadOptions) -> tuple[list[Path], ReadOptions]:
    """The files of the splits that the user names, by folder or by name as the hub has it (data/train-00000.parquet).

    Where no file is named after a split, the records must say it: then the options keep it.

    Raises:
        InputError: there is no such split; the message names those that there are.
    """
    if not options.split or not files:
        return files, options
    wanted = [file for file in files if any(_is_of(file.relative_to(root), split) for split in options.split)]
    if wanted:
        return wanted, replace(options, split=())
    there = sorted({split for file in files for split in _splits_of(file.relative_to(root))})
    if there or kind not in _HOLD_SPLITS:
        has = f"it has {', '.join(there)}" if there else "no file or folder of it is named after a split"
        raise InputError(f"{root} has no split {', '.join(options.split)}; {has}")
    return files, options


def _is_of(path: Path, split: str) -> bool:
    """Whether a file, or one of its folders, is named after a split."""
    return re.search(rf"(^|[/._ -]){re.escape(split.lower())}([/._ -]|$)", path.as_posix().lower()) is not None


def _splits_of(path: Path) -> set[str]:
    """The splits of the usual names after which a file or one of its folders is named."""
    return {split for split in _SPLITS if _is_of(path, split)}


def unread_files(path: Path, kind: str, endings: tuple[str, ...], read: Collection[Path]) -> Iterator[str]:
    """Why files of a folder are not `read`, once for each: they are data of another kind than the rest."""
    pattern = re.compile(_UNREAD.get(kind, rf"\.({_DATA}|{_OF_SITES})$"))
    known = frozenset(read)
    for file in find_files(path, ""):
        if file in known:
            continue
        if os.path.isdir(file):
            yield "folder that cannot be read"
            continue
        match = pattern.search(file.name.lower())
        if match and not file.name.lower().endswith((*endings, *_BESIDE.get(kind, ()))):
            if match[0] in (".heic", ".heif"):
                yield IN_HEIC
            else:
                yield f"file that the kind {kind!r} doesn't read ({match[0]})"


def is_page(path: Path) -> bool:
    """Whether a file is a web page by its beginning.

    `wget` names pages as their addresses end: about, article?id=1, index.html.gz.
    """
    if ("?" not in path.name and path.name.lower().endswith(PICTURE_ENDINGS)) or not os.path.isfile(path):
        return False
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_OF_PAGE)
        if head.startswith(PACKED_PAGES):
            head = zlib.decompressobj(47).decompress(head, _HEAD_OF_PAGE)  # 47: gzip or zlib
    except (OSError, zlib.error):
        return False
    rest = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    while end := next((end for begin, end in _BEFORE_PAGES.items() if rest.startswith(begin)), None):
        rest = rest.partition(end)[2].lstrip()
    return _PAGE.match(rest) is not None


def describe_files(path: Path) -> str:
    """What a folder holds, by the endings of its files, the most frequent first."""
    files = find_files(path, "")
    closed = sum(os.path.isdir(file) for file in files)
    counts = Counter(file.suffix.lower() or "no ending" for file in files if not os.path.isdir(file))
    described = [f"{count:,} files with {ending}" for ending, count in counts.most_common(5)] or ["no files"]
    return ", ".join([*described, f"{closed:,} folders that cannot be read"] if closed else described)

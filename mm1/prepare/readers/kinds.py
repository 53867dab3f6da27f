"""What people hold, by its kind: which files are its parts, and how one of them is read; and the kind told from them.

A reader takes one `Part` and yields `Document`s with their pictures as they are, undecoded; what it leaves out it
counts.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from mm1.document import Document
from mm1.prepare.fetch import Web
from mm1.prepare.readers.folders import PICTURES, read_coco, read_llava, read_pairs
from mm1.prepare.readers.json_lines import read_mmc4, read_text
from mm1.prepare.readers.tables import read_dataset, read_parquet
from mm1.prepare.readers.tars import read_tars
from mm1.prepare.readers.web import read_html, read_warc
from mm1.prepare.shard import InputError, Part, files_of, lines_of, one_each, parse_json

Kind = Literal["tars", "parquet", "mmc4", "llava", "coco", "text", "pairs", "dataset", "html", "warc"]
Read = Callable[[Part, Counter[str]], Iterator[Document]]

KINDS: dict[str, Read] = {
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
}

_LINES = tuple(f".jsonl{packed}" for packed in ("", ".gz", ".zst", ".bz2", ".zip"))
_TEXTS = tuple(f"{e}{packed}" for e in (".jsonl", ".json", ".txt", ".ndjson") for packed in ("", ".gz", ".zst", ".bz2"))
_ENDINGS: dict[str, tuple[str, ...]] = {
    "tars": (".tar", ".tar.gz", ".tgz"),
    "parquet": (".parquet",),
    "mmc4": _LINES,
    "llava": (".json", ".jsonl"),
    "coco": (".json",),
    "text": _TEXTS,
    "pairs": PICTURES,
    "dataset": (".arrow",),
    "html": (".html", ".htm", ".xhtml"),
    "warc": (".warc", ".warc.gz"),
}
_SMALL = ("pairs", "html")  # many files to a part
_FILES_OF_A_PART = 500
_WORDS = ("text_list", "image_info", "conversations", "messages", "images", "annotations", "info", "licenses", "text")


def parts_of(path: Path, kind: str, *, pictures: Path | None = None, web: Web | None = None) -> list[Part]:
    """The parts of the input, in the order of their names.

    Raises:
        InputError: nothing there, or no file that the kind reads.
    """
    _exists(path)
    endings = _ENDINGS[kind]
    if kind in _SMALL:
        files = files_of(path, *endings)
        root = path if path.is_dir() else path.parent
        groups = [tuple(files[at : at + _FILES_OF_A_PART]) for at in range(0, len(files), _FILES_OF_A_PART)]
        parts = [Part(f"{path.name} {place}", root, group, pictures) for place, group in enumerate(groups)]
    else:
        parts = one_each(path, *endings, pictures=pictures)
    if not parts:
        raise InputError(f"{path} has no file for kind {kind!r}: expected names that end in {', '.join(endings)}")
    return [replace(part, web=web, kind=kind) for part in parts]


def kind_of(path: Path) -> str:
    """The kind of the input, told from the names of its files and the first object of a JSON file.

    Raises:
        InputError: nothing there, or nothing known; the message says how to name the kind.
    """
    _exists(path)
    for kind in ("tars", "warc", "dataset", "parquet", "html"):  # img2dataset puts parquet beside its tars
        if files_of(path, *_ENDINGS[kind]):
            return kind
    lines = files_of(path, *_TEXTS, *_LINES)
    told = next((known for file in lines if (known := _told(file))), None)
    if told:
        return told
    pictures = files_of(path, *PICTURES)
    if any(picture.with_suffix(".txt").is_file() for picture in pictures):
        return "pairs"
    if lines:
        return "text"
    raise InputError(f"cannot tell what {path} holds; say it with --kind, one of {', '.join(get_args(Kind))}")


def _told(path: Path) -> str | None:
    """The kind of a JSON file, from its first object; None for other files."""
    if ".json" not in path.name.lower():
        return None
    try:
        head = next(lines_of(path, Counter()), b"")[: 2**20].decode("utf-8", "replace").lstrip("\ufeff \n[")
        more = "" if path.suffix != ".json" else path.open(encoding="utf-8", errors="replace").read(2**16)
    except (InputError, OSError):
        return None
    first = parse_json(head.rstrip().rstrip(",]"))
    keys = set(first) if isinstance(first, dict) else {word for word in _WORDS if f'"{word}"' in head + more}
    if {"text_list", "image_info"} <= keys:
        return "mmc4"
    if keys & {"conversations", "messages"}:
        return "llava"
    if {"images", "annotations"} <= keys or {"images", "info", "licenses"} <= keys:
        return "coco"
    return "text" if "text" in keys else None


def _exists(path: Path) -> None:
    if not path.exists():
        raise InputError(f"there is no {path}; expected a file or a folder")

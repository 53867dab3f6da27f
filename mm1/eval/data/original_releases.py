"""Benchmarks as first released, as JSON with folders of images, read into rows with the hub's column names.

Each function makes a `Reader`, or is one.
"""

import base64
import binascii
import csv
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mm1.eval.data.release_files import (
    MissingKey,
    Reader,
    ReleaseRow,
    filled,
    find,
    inner_rows,
    listed_rows,
    mapped_rows,
    needed,
    picture_path,
    reader_of,
)
from mm1.eval.data.rows import (
    JoinedRows,
    ListedRows,
    Row,
    Rows,
    SomeRows,
    TaskError,
    parquet_rows,
)

SHORTEST_PICTURE = 65
"""A shorter text in a table's picture column is the index of the row that has the picture."""

KARPATHY_SPLITS = ("train", "restval", "val", "validation", "test")


def vqa_files(questions: str, annotations: str, *, answer: str = "answer") -> Reader:
    """A reader of VQA's two files (https://visualqa.org/vqa_v2_dataset.html), questions and answers.

    The images are COCO's. The test splits have no answers. A person's answer stands under `answer`, or else "answer".
    """

    def read(folder: Path, split: str) -> Rows | None:
        questions_path, annotations_path = (find(folder, filled(name, split)) for name in (questions, annotations))
        if questions_path is None or (annotations_path is None and not split.startswith("test")):
            return None
        answers: dict[Any, list[Any]] = {}
        if annotations_path is not None:
            for row in listed_rows(annotations_path, "annotations"):
                people = inner_rows(row, "answers")
                answers[row["question_id"]] = [one[answer if answer in one else "answer"] for one in people]
        part, rows = filled("{part}", split).replace("-dev", ""), []
        image_folders = [part, f"../images/{part}", "../images", ".."]
        for row in listed_rows(questions_path, "questions"):
            image = picture_path(questions_path.parent, image_folders, f"COCO_{part}_{row['image_id']:012d}.jpg")
            rows.append({**row, "answers": answers.get(row["question_id"], []), "image": image})
        return ListedRows(str(questions_path), rows)

    return Reader((questions, annotations), read)


def listed(file: str, *, key: str = "", image: str, folders: tuple[str, ...] = (), **names: str) -> Reader:
    """A reader of one file with a list of rows, under `key` if that is given.

    `image` is the file name of the image, in which the names of columns are replaced by their values. `names` renames
    columns: new="old".
    """

    def read(folder: Path, split: str) -> Rows | None:
        path = find(folder, filled(file, split))
        if path is None:
            return None
        image_folders = [filled(name, split) for name in folders]
        rows = _complete(listed_rows(path, key), path, image=image, folders=image_folders, names=names)
        return ListedRows(str(path), rows)

    return Reader((file,), read)


def karpathy(file: str, *, folders: tuple[str, ...]) -> Reader:
    """A reader of Karpathy's splits (https://cs.stanford.edu/people/karpathy/deepimagesent/), one file of captions.

    `train` includes `restval`, as is usual; `train2014` does not. Parquet is read, too, if a column of any name has
    these splits.
    """

    def read(folder: Path, split: str) -> Rows | None:
        names = {"train": ("train", "restval"), "train2014": ("train",)}.get(split, (split,))
        path = find(folder, file)
        if path is None:
            all_rows = parquet_rows(folder, "test")
            split_of_rows = None if all_rows is None else _karpathy_splits(all_rows)
            if all_rows is None or split_of_rows is None:
                return None
            positions = [position for position, name in enumerate(split_of_rows) if name in names]
            return SomeRows(f"{split} of {folder}", all_rows, positions)
        rows: list[Row] = [
            {
                "img_id": str(row["imgid"]),
                "filename": row["filename"],
                "caption": [sentence["raw"] for sentence in inner_rows(row, "sentences")],
                "image": picture_path(path.parent, [row.get("filepath", ""), *folders], row["filename"]),
            }
            for row in listed_rows(path, "images")
            if row["split"] in names
        ]
        return ListedRows(f"{split} of {path}", rows)

    return Reader((file,), read)


def _karpathy_splits(rows: Rows) -> list[str] | None:
    """The split of each row: the column with several of Karpathy's names and no other text; None without one."""
    columns: dict[str, list[str]] | None = None
    for row in rows.light():
        named = {name: text for name, text in row.items() if isinstance(text, str) and text in KARPATHY_SPLITS}
        columns = {name: [] for name in named} if columns is None else columns
        columns = {name: texts for name, texts in columns.items() if name in named}
        for name, texts in columns.items():
            texts.append(named[name])
    several = [texts for texts in (columns or {}).values() if len(set(texts)) > 1]
    return several[0] if several else None


def coco_captions(
    file: str, *, folders: tuple[str, ...], name: str = "image_id", captions: str = "annotations_captions"
) -> Reader:
    """A reader of COCO's caption file with images, and annotations by image id; NoCaps has this format.

    A file of a test split has images alone. `name` and `captions` are the columns of the ids and of the captions.
    """

    def read(folder: Path, split: str) -> Rows | None:
        path = find(folder, filled(file, split))
        if path is None:
            return None
        texts = defaultdict(list)
        for row in listed_rows(path, "annotations", optional=True):
            texts[row["image_id"]].append(row["caption"])
        rows: list[Row] = [
            {
                name: row["id"],
                captions: texts[row["id"]],
                "image": picture_path(path.parent, [split, *folders], row["file_name"]),
            }
            for row in listed_rows(path, "images")
        ]
        return ListedRows(str(path), rows)

    return Reader((file,), read)


def grouped(reader: Reader, *, by: str, gather: str) -> Reader:
    """A reader that merges rows of `reader` with equal values of `by`; the column `gather` lists all their values."""

    def read(folder: Path, split: str) -> Rows | None:
        rows = reader(folder, split)
        if not isinstance(rows, ListedRows):
            return rows
        groups: dict[Any, Row] = {}
        for row in rows.rows:
            groups.setdefault(row[by], row | {gather: []})[gather].append(row[gather])
        return ListedRows(rows.name, list(groups.values()))

    return Reader(reader.files, read)


def first(*readers: Reader) -> Reader:
    """A reader that gives the rows of the first of these readers that finds its files."""

    def read(folder: Path, split: str) -> Rows | None:
        return next((rows for one in readers if (rows := one(folder, split)) is not None), None)

    return Reader(_files_of(readers), read)


def several(column: str, **readers: Reader) -> Reader:
    """A reader of the rows of all `readers` that find their files, with the reader's name in `column`."""

    def read(folder: Path, split: str) -> Rows | None:
        by_name = [(name, reader(folder, split)) for name, reader in readers.items()]
        parts = [(name, part.rows) for name, part in by_name if isinstance(part, ListedRows)]
        rows = [row | {column: name} for name, part in parts for row in part]
        return ListedRows(f"{split} of {folder}", rows) if rows else None

    return Reader(_files_of(readers.values()), read)


def _files_of(readers: Iterable[Reader]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(file for reader in readers for file in reader.files))


def joined(questions: str, pictures: str, *, key: str) -> Reader:
    """A reader of two tables on the hub: one of questions, and one with each image once (GQA)."""

    def read(folder: Path, split: str) -> Rows | None:
        question_rows = parquet_rows(folder / filled(questions, split), split)
        if question_rows is None:
            return None
        images = parquet_rows(folder / filled(pictures, split), split)
        if images is None:
            raise TaskError(f"{folder} has {filled(questions, split)} but not {filled(pictures, split)}")
        positions = {row["id"]: position for position, row in enumerate(images.light())}
        return JoinedRows(question_rows, images, key, positions)

    return Reader((f"{questions}/*.parquet", f"{pictures}/*.parquet"), read)


@reader_of("CATEGORY/*.txt")
def mme_folders(folder: Path, split: str) -> Rows | None:
    """The rows of MME's release: a folder per category, and in it a text file with two questions beside each image."""
    rows = []
    for path in sorted(folder.glob("*/*.txt")) + sorted(folder.glob("*/questions_answers_YN/*.txt")):
        is_separate = path.parent.name == "questions_answers_YN"  # images are in a folder of their own
        image_folder = path.parent.parent / "images" if is_separate else path.parent
        category = (path.parent.parent if is_separate else path.parent).name
        candidates = [image_folder / f"{path.stem}{ending}" for ending in (".jpg", ".png")]
        image = next((candidate for candidate in candidates if candidate.is_file()), candidates[0])
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            question, tab, answer = line.partition("\t")
            if not tab:
                raise TaskError(f"{path}, line {number}: a question, a tab and Yes or No are expected; found {line!r}")
            named = {"question_id": f"{category}/{path.stem}", "category": category}
            rows.append({**named, "question": question, "answer": answer.strip(), "image": image})
    return ListedRows(str(folder), rows) if rows else None


@reader_of("problems.json", "{short}/ID/image.png")
def scienceqa_files(folder: Path, split: str) -> Rows | None:
    """Rows with an image of ScienceQA's release (https://scienceqa.github.io): problems.json, SPLIT/ID/image.png."""
    path = find(folder, "problems.json")
    if path is None:
        return None
    name = filled("{short}", split)
    rows: list[Row] = [
        {**row, "image": picture_path(path.parent, [f"{name}/{number}", f"images/{name}/{number}"], row["image"])}
        for number, row in mapped_rows(path).items()
        if row["split"] == name and row["image"]
    ]
    return ListedRows(f"{split} of {path}", rows)


def named_rows(file: str, *, name: str, image: str, folders: tuple[str, ...] = ("images",), **names: str) -> Reader:
    """A reader of a file that maps ids to rows (GQA, MathVista, MM-Vet); the id becomes the column `name`."""

    def read(folder: Path, split: str) -> Rows | None:
        path = find(folder, filled(file, split))
        if path is None:
            return None
        rows = [row | {name: key} for key, row in mapped_rows(path).items()]
        return ListedRows(str(path), _complete(rows, path, image=image, folders=folders, names=names))

    return Reader((file,), read)


def tsv(*files: str) -> Reader:
    """A reader of a tab-separated table with the images in base64, or as the `index` of the row that has it (MMBench).

    The first of `files` is read that is there, with {split} in small letters or in capitals.

    Source: https://github.com/open-compass/VLMEvalKit/blob/main/vlmeval/dataset/image_base.py (a text of at most 64
    letters is an index).
    """

    def read(folder: Path, split: str) -> Rows | None:
        names = [filled(file, name) for file in files for name in (split, split.upper())]
        path = next((path for name in names if (path := find(folder, name)) is not None), None)
        if path is None:
            return None
        csv.field_size_limit(sys.maxsize)
        rows: list[Row] = []
        with path.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines, delimiter="\t"):
                rows.append({key: value or None for key, value in row.items() if key})
        pictures = {row.get("index"): row.get("image") or "" for row in rows}
        for row in rows:
            image = row.get("image") or ""
            row["image"] = _base64(pictures.get(image, image) if len(image) < SHORTEST_PICTURE else image)
        return ListedRows(str(path), rows)

    return Reader(files, read)


def _complete(
    rows: Sequence[ReleaseRow], path: Path, *, image: str, folders: Sequence[str], names: Mapping[str, str]
) -> list[Row]:
    """The rows of a file with the columns that `names` renames, and their pictures.

    A row that lacks a column is left as it is: an odd one.

    Raises:
        MissingKey: all rows lack one.
    """
    completed: list[Row] = []
    faults: list[MissingKey] = []
    for row in rows:
        try:
            renamed = row | {new: row[old] for new, old in names.items()}
            completed.append(renamed | {"image": picture_path(path.parent, folders, image.format_map(row))})
        except MissingKey as fault:
            completed.append(row)
            faults.append(fault)
    if faults and len(faults) == len(rows):
        raise faults[0]
    return completed


def _base64(text: str) -> bytes:
    """The bytes in base64; those of the text itself, which are no picture, if it is none."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return text.encode()


@reader_of("questions.jsonl", "context.jsonl", "answers_gpt4.jsonl")
def llava_bench(folder: Path, split: str) -> Rows | None:
    """The rows of LLaVA-Bench's release: questions.jsonl, context.jsonl (captions), answers_gpt4.jsonl, images."""
    path = find(folder, "questions.jsonl")
    if path is None:
        return None
    captions = {row["image"]: row["caption"] for row in listed_rows(needed(path.parent / "context.jsonl"), "")}
    answers = {row["question_id"]: row["text"] for row in listed_rows(needed(path.parent / "answers_gpt4.jsonl"), "")}
    rows: list[Row] = []
    for row in listed_rows(path, ""):
        judged = {"caption": captions.get(row["image"]), "gpt_answer": answers.get(row["question_id"])}
        judged = {name: text for name, text in judged.items() if text is not None}  # without one the row is an odd one
        image = picture_path(path.parent, ("images",), row["image"])
        rows.append({**row, **judged, "question": row["text"], "image": image})
    return ListedRows(str(path), rows)


@reader_of("dataset.json")
def book_covers(folder: Path, split: str) -> Rows | None:
    """The rows of OCR-VQA's dataset.json (https://ocr-vqa.github.io), one for each question.

    The pictures are those of its loadDataset.py, in `images`, with the ending of their address, or all as .jpg.
    """
    path = find(folder, "dataset.json")
    number = {"train": 1, "validation": 2, "test": 3}.get(split)
    if path is None or number is None:
        return None
    rows: list[Row] = []
    for book, entry in mapped_rows(path).items():
        if entry["split"] != number:
            continue
        names = (book + Path(entry["imageURL"]).suffix, f"{book}.jpg")
        pictures = [picture_path(path.parent, ["images"], name) for name in names]
        image = next((picture for picture in pictures if picture.is_file()), pictures[0])
        pairs = enumerate(zip_longest(entry["questions"], entry["answers"]))  # one too many is an odd row
        rows += [
            {"question_id": f"{book}-{n}", "book": book, "question": question, "answer": answer, "image": image}
            for n, (question, answer) in pairs
        ]
    return ListedRows(f"{split} of {path}", rows)

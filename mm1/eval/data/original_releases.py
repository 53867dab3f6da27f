"""Benchmarks as they were first released, JSON beside folders of pictures, as rows with the hub's column names.

Each function makes a reader: (folder, split) -> rows, or None where these files are not in the folder.
"""

import base64
import binascii
import csv
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mm1.eval.data.rows import (
    JoinedRows,
    ListedRows,
    Row,
    Rows,
    SomeRows,
    TaskError,
    parquet_rows,
    read_json,
)

Reader = Callable[[Path, str], Rows | None]


def vqa_files(questions: str, annotations: str, *, answer: str = "answer") -> Reader:
    """VQA's two files (https://visualqa.org/vqa_v2_dataset.html): questions, and the people's answers apart.

    {part} of the names is val2014 or train2014; the pictures are COCO's.
    """

    def read(folder: Path, split: str) -> Rows | None:
        part = {"validation": "val2014", "train": "train2014"}.get(split, split)
        asked, said = _one(folder, questions.format(part=part)), _one(folder, annotations.format(part=part))
        if asked is None or said is None:
            return None
        answers = {row["question_id"]: row for row in _listed(said, "annotations")}
        rows = []
        for row in _listed(asked, "questions"):
            if row["question_id"] not in answers:
                raise TaskError(f"{said} has no answers to question {row['question_id']} of {asked}")
            people = [given[answer] for given in answers[row["question_id"]]["answers"]]
            image = _picture(folder, [part], f"COCO_{part}_{row['image_id']:012d}.jpg")
            rows.append({**row, "answers": people, "image": image})
        return ListedRows(str(asked), rows)

    return read


def listed(file: str, *, key: str = "", image: str, folders: tuple[str, ...] = (), **names: str) -> Reader:
    """One file with a list of rows, maybe under `key`. {split} and {short} (val for validation) are filled in.

    `image` is the picture's file name with the row's columns filled in; `names` renames columns: new="old".
    """

    def read(folder: Path, split: str) -> Rows | None:
        short = {"validation": "val"}.get(split, split)
        path = _one(folder, file.format(split=split, short=short))
        if path is None:
            return None
        places = [place.format(split=split, short=short) for place in folders]
        rows = []
        for number, row in enumerate(_listed(path, key)):
            try:
                made = row | {new: row[old] for new, old in names.items()}
                rows.append(made | {"image": _picture(path.parent, places, image.format(**row))})
            except KeyError as error:
                raise TaskError(f"{path}, row {number} has no {error}; found {', '.join(row)}") from error
        return ListedRows(str(path), rows)

    return read


def karpathy(file: str, *, folders: tuple[str, ...]) -> Reader:
    """Karpathy's splits (https://cs.stanford.edu/people/karpathy/deepimagesent/): one file of all sentences.

    `train` also holds `restval`, as everybody trains. Parquet with a column `split` is read too.
    """

    def read(folder: Path, split: str) -> Rows | None:
        wanted = {"train": ("train", "restval")}.get(split, (split,))
        path = _one(folder, file)
        if path is None:
            found = parquet_rows(folder, "test")
            parts = [row.get("split") for row in found.light()] if found is not None else [None]
            if found is None or None in parts:
                return None
            return SomeRows(f"{split} of {folder}", found, [n for n, part in enumerate(parts) if part in wanted])
        rows = [
            {
                "img_id": str(row["imgid"]),
                "filename": row["filename"],
                "caption": [sentence["raw"] for sentence in row["sentences"]],
                "image": _picture(path.parent, [row.get("filepath", ""), *folders], row["filename"]),
            }
            for row in _listed(path, "images")
            if row["split"] in wanted
        ]
        return ListedRows(f"{split} of {path}", rows)

    return read


def coco_captions(file: str, *, folders: tuple[str, ...]) -> Reader:
    """COCO's caption file: images and annotations by image id; NoCaps uses it."""

    def read(folder: Path, split: str) -> Rows | None:
        path = _one(folder, file.format(short={"validation": "val"}.get(split, split)))
        if path is None:
            return None
        captions: dict[Any, list[str]] = defaultdict(list)
        for row in _listed(path, "annotations"):
            captions[row["image_id"]].append(row["caption"])
        rows = [
            {
                "image_id": row["id"],
                "annotations_captions": captions[row["id"]],
                "image": _picture(path.parent, folders, row["file_name"]),
            }
            for row in _listed(path, "images")
        ]
        return ListedRows(str(path), rows)

    return read


def grouped(reader: Reader, *, by: str, gather: str) -> Reader:
    """The rows of `reader`, those with one value of `by` made one, whose column `gather` lists all of theirs."""

    def read(folder: Path, split: str) -> Rows | None:
        found = reader(folder, split)
        if not isinstance(found, ListedRows):
            return found
        groups: dict[Any, Row] = {}
        for row in found.rows:
            groups.setdefault(row[by], row | {gather: []})[gather].append(row[gather])
        return ListedRows(found.name, list(groups.values()))

    return read


def first(*readers: Reader) -> Reader:
    """The rows of the first reader that finds its files."""
    return lambda folder, split: next((rows for one in readers if (rows := one(folder, split)) is not None), None)


def several(column: str, **readers: Reader) -> Reader:
    """The rows of all readers that find their files, one after the other, with the reader's name in `column`."""

    def read(folder: Path, split: str) -> Rows | None:
        found = [(name, reader(folder, split)) for name, reader in readers.items()]
        parts = [(name, part.rows) for name, part in found if isinstance(part, ListedRows)]
        rows = [row | {column: name} for name, part in parts for row in part]
        return ListedRows(f"{split} of {folder}", rows) if rows else None

    return read


def joined(questions: str, pictures: str, *, key: str) -> Reader:
    """The hub's pairs of tables: questions, and each picture once (GQA)."""

    def read(folder: Path, split: str) -> Rows | None:
        asked = parquet_rows(folder / questions.format(split=split), split)
        if asked is None:
            return None
        shown = parquet_rows(folder / pictures.format(split=split), split)
        if shown is None:
            raise TaskError(f"{folder} has {questions.format(split=split)} but not {pictures.format(split=split)}")
        return JoinedRows(asked, shown, key, {row["id"]: place for place, row in enumerate(shown.light())})

    return read


def mme_folders(folder: Path, split: str) -> Rows | None:
    """MME's release: a folder for each category, a text file of two questions beside each picture."""
    rows = []
    for path in sorted(folder.glob("*/*.txt")) + sorted(folder.glob("*/questions_answers_YN/*.txt")):
        place = path.parent.parent / "images" if path.parent.name == "questions_answers_YN" else path.parent
        category = (path.parent.parent if place != path.parent else path.parent).name
        pictures = [place / f"{path.stem}{ending}" for ending in (".jpg", ".png")]
        image = next((picture for picture in pictures if picture.is_file()), pictures[0])
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            question, tab, answer = line.partition("\t")
            if not tab:
                raise TaskError(f"{path}, line {number}: a question, a tab and Yes or No are expected; found {line!r}")
            named = {"question_id": f"{category}/{path.stem}", "category": category}
            rows.append({**named, "question": question, "answer": answer.strip(), "image": image})
    return ListedRows(str(folder), rows) if rows else None


def scienceqa_files(folder: Path, split: str) -> Rows | None:
    """ScienceQA's release (https://scienceqa.github.io): problems.json, `SPLIT/ID/image.png`; those with a picture."""
    path = _one(folder, "problems.json")
    if path is None:
        return None
    name = {"validation": "val"}.get(split, split)
    return ListedRows(
        f"{split} of {path}",
        [
            {**row, "image": _picture(path.parent, [f"{name}/{number}", f"images/{name}/{number}"], row["image"])}
            for number, row in _mapping(path).items()
            if row["split"] == name and row["image"]
        ],
    )


def named_rows(file: str, *, name: str, image: str, folders: tuple[str, ...] = ("images",), **names: str) -> Reader:
    """A file that is a mapping from ids to rows (GQA, MathVista, MM-Vet); the id becomes the column `name`."""

    def read(folder: Path, split: str) -> Rows | None:
        path = _one(folder, file.format(split=split))
        if path is None:
            return None
        rows = []
        for key, row in _mapping(path).items():
            try:
                made = row | {new: row[old] for new, old in names.items()} | {name: key}
                rows.append(made | {"image": _picture(path.parent, folders, image.format(**row))})
            except KeyError as error:
                raise TaskError(f"{path}, {key!r} has no {error}; found {', '.join(row)}") from error
        return ListedRows(str(path), rows)

    return read


def tsv(file: str) -> Reader:
    """A table with tabs whose pictures stand in it in base64 (MMBench)."""

    def read(folder: Path, split: str) -> Rows | None:
        path = _one(folder, file.format(split=split))
        if path is None:
            return None
        csv.field_size_limit(sys.maxsize)
        rows: list[Row] = []
        with path.open(newline="", encoding="utf-8") as lines:
            for number, row in enumerate(csv.DictReader(lines, delimiter="\t")):
                try:
                    data = base64.b64decode(row.get("image") or "", validate=True)
                except binascii.Error as error:
                    raise TaskError(f"{path}, row {number}: the picture is no base64 ({error})") from error
                rows.append({key: value or None for key, value in row.items() if key} | {"image": data})
        return ListedRows(str(path), rows)

    return read


def llava_bench(folder: Path, split: str) -> Rows | None:
    """LLaVA-Bench's release: questions.jsonl, context.jsonl (captions), answers_gpt4.jsonl, images."""
    path = _one(folder, "questions.jsonl")
    if path is None:
        return None
    captions = {row["image"]: row["caption"] for row in _listed(_needed(path.parent / "context.jsonl"), "")}
    answers = {row["question_id"]: row["text"] for row in _listed(_needed(path.parent / "answers_gpt4.jsonl"), "")}
    rows = []
    for row in _listed(path, ""):
        if row["question_id"] not in answers or row["image"] not in captions:
            raise TaskError(f"{path}: question {row['question_id']} has no caption or no answer of GPT-4 beside it")
        theirs = {"caption": captions[row["image"]], "gpt_answer": answers[row["question_id"]]}
        image = _picture(path.parent, ("images",), row["image"])
        rows.append({**row, **theirs, "question": row["text"], "image": image})
    return ListedRows(str(path), rows)


def _one(folder: Path, name: str) -> Path | None:
    """The file of this name in the folder or in one of its folders."""
    found = [*sorted(folder.glob(name)), *sorted(folder.glob(f"*/{name}"))]
    return found[0] if found else None


def _needed(path: Path) -> Path:
    if not path.is_file():
        raise TaskError(f"{path} is missing")
    return path


def _listed(path: Path, key: str) -> list[Row]:
    whole = read_json(path)
    found = whole.get(key) if key and isinstance(whole, dict) else whole
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        under = f" under {key!r}" if key else ""
        raise TaskError(f"{path} must hold a list of rows{under}; found {type(found).__name__}")
    return found


def _mapping(path: Path) -> dict[str, Row]:
    found = read_json(path)
    if not isinstance(found, dict) or not all(isinstance(row, dict) for row in found.values()):
        raise TaskError(f"{path} must map ids to rows; found {type(found).__name__}")
    return found


def _picture(folder: Path, places: Iterable[str], name: str) -> Path:
    """Where the picture stands: in one of the places, in `images`, or beside the file. Missing ones are told later."""
    candidates = [folder / place / name for place in (*places, "images", "")]
    candidates += [folder / "images" / place / name for place in places]
    candidates += [folder.parent / place / name for place in places]
    return next((path for path in candidates if path.is_file()), candidates[0])

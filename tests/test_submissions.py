"""Splits whose answers are hidden: the file that the benchmark's server takes is written instead of scores."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from layout import cell, data, jpg, write
from test_protocol import Echo, reply

from mm1.eval.harness import evaluate, load_task
from mm1.eval.results import read_results
from mm1.eval.task_evaluation import Settings

VQA = {"question": "What?"}
CHOICES = {"A": "red", "B": "blue", "C": "green", "D": None, "question": "Which?", "hint": None}
ROWS: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "vqav2": ("testdev", lambda n: {**VQA, "question_id": n, "answers": None}),
    "vizwiz": ("test", lambda n: {**VQA, "question_id": f"VizWiz_test_{n:08d}", "answers": None}),
    "docvqa": ("test", lambda n: {**VQA, "questionId": str(n), "answers": None}),
    "infovqa": ("test", lambda n: {**VQA, "questionId": str(n), "answers": []}),
    "mmmu": (
        "test",
        lambda n: (
            {"id": f"test_Art_{n}", "question": "Which?", "image_1": f"{n}.jpg", "answer": "?"}
            | {"options": "['red', 'blue']" if n % 2 else "[]", "explanation": ""}
        ),
    ),
    "mmbench": ("test", lambda n: {**CHOICES, "index": n, "answer": None}),
    "nocaps": ("test", lambda n: {"image_id": n, "annotations_captions": None}),
    "coco": ("test2014", lambda n: {"img_id": str(n), "caption": []}),
}
"""By task a split with hidden answers and its rows, with the columns that the hub's data have."""


class Writes(Echo):
    """An answer to each request: a letter, or a few words with a comma."""

    def generate(self, requests, *, done):
        return reply(["B" if "A. red" in one.prompt.text else "sunset, maybe" for one in requests], done)


class Thinks(Echo):
    """Thoughts, which are cut off after the first answer."""

    def generate(self, requests, *, done):
        return reply(["<think>Dusk?</think>dawn", *["<think>Dusk? It may be"] * (len(requests) - 1)], done)


def submitted(name: str, folder: Path, split: str, *, model: type[Echo] = Writes, **how) -> Path:
    task = load_task(name, limit=99, seed=0, data=str(folder), split=split, rules="official", **how)
    assert task.submission is not None
    results = evaluate(model(), [task], settings=Settings(folder / "eval"), shots=(0,))
    assert not results.scores
    assert not read_results(folder / "eval").scores
    (path,) = results.files
    return path


@pytest.mark.parametrize("name", ROWS)
def test_a_hidden_split_gives_the_file_that_its_server_takes(name: str, tmp_path: Path):
    split, row = ROWS[name]
    rows = [{**row(n), "image": f"{n}.jpg"} for n in range(1, 6)]
    for n in range(1, 6):
        jpg(tmp_path / f"{n}.jpg", n)
    if name == "mmmu":  # its first picture has a column of its own
        data(tmp_path, split, [{**row(n), "image_1": cell(n)} for n in range(1, 6)], images=("image_1",))
    else:
        write(tmp_path / f"{split}.jsonl", rows, lines=True)
    content = submitted(name, tmp_path, split, **({"form": "plain"} if name not in ("mmmu", "mmbench") else {}))
    if name == "mmbench":
        assert table(content.read_bytes()) == [
            ["index", "question", "A", "B", "C", "D", "prediction"],
            *([str(n), "Which?", "red", "blue", "green", "", "B"] for n in range(1, 6)),
        ]
        return
    expected = {
        "vqav2": [{"question_id": n, "answer": "sunset, maybe"} for n in range(1, 6)],
        "vizwiz": [{"image": f"VizWiz_test_{n:08d}.jpg", "answer": "sunset, maybe"} for n in range(1, 6)],
        "docvqa": [{"questionId": n, "answer": "sunset, maybe"} for n in range(1, 6)],
        "infovqa": [{"questionId": n, "answer": "sunset, maybe"} for n in range(1, 6)],
        "mmmu": {f"test_Art_{n}": "B" if n % 2 else "sunset, maybe" for n in range(1, 6)},
        "nocaps": [{"image_id": n, "caption": "sunset, maybe"} for n in range(1, 6)],
        "coco": [{"image_id": n, "caption": "sunset, maybe"} for n in range(1, 6)],
    }
    assert json.loads(content.read_text()) == expected[name]


def test_thoughts_are_not_submitted(tmp_path: Path):
    for n in (1, 2):
        jpg(tmp_path / f"{n}.jpg", n)
    rows = [{**ROWS["docvqa"][1](n), "question": f"What is {n}?", "image": f"{n}.jpg"} for n in (1, 2)]
    write(tmp_path / "test.jsonl", rows, lines=True)
    content = json.loads(submitted("docvqa", tmp_path, "test", model=Thinks).read_text())
    assert [row["answer"] for row in content] == ["dawn", ""]


def test_a_repeated_id_is_submitted_once(tmp_path: Path):
    rows = [{**ROWS["docvqa"][1](n % 4), "image": f"{n}.jpg"} for n in range(1, 7)]
    for n in range(1, 7):
        jpg(tmp_path / f"{n}.jpg", n)
    write(tmp_path / "test.jsonl", rows, lines=True)
    content = json.loads(submitted("docvqa", tmp_path, "test").read_text())
    assert [row["questionId"] for row in content] == [1, 2, 3, 0]


def table(workbook: bytes) -> list[list[str]]:
    """The cells of the first sheet, as a reader of spreadsheets finds them."""
    space = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
    with zipfile.ZipFile(io.BytesIO(workbook)) as archive:
        sheet = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
    return [["".join(cell.itertext()) for cell in row.iter(f"{space}c")] for row in sheet.iter(f"{space}row")]


def test_hidden_splits_of_first_releases_are_read(tmp_path: Path):
    for n in range(1, 4):
        jpg(tmp_path / "vqav2" / "test2015" / f"COCO_test2015_{n:012d}.jpg", n)
        for name in ("docvqa", "nocaps", "coco"):
            jpg(tmp_path / name / "images" / f"{n}.jpg", n)
    questions = [{"image_id": n, "question": "What?", "question_id": n} for n in range(1, 4)]
    write(tmp_path / "vqav2" / "v2_OpenEnded_mscoco_test-dev2015_questions.json", {"questions": questions})
    pages = [{"questionId": n, "question": "What?", "image": f"{n}.jpg"} for n in range(1, 4)]
    write(tmp_path / "docvqa" / "test_v1.0.json", {"data": pages})
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(1, 4)]
    write(tmp_path / "nocaps" / "nocaps_test_image_info.json", {"images": images})
    write(tmp_path / "coco" / "image_info_test2014.json", {"images": images})
    splits = {"vqav2": "testdev", "docvqa": "test", "nocaps": "test", "coco": "test2014"}
    for name, split in splits.items():
        assert len(json.loads(submitted(name, tmp_path / name, split).read_text())) == 3


def test_a_split_with_answers_is_scored_and_one_without_a_server_is_refused(tmp_path: Path):
    rows = [{"question_id": n, "question": "What?", "answers": ["red"] if n == 1 else None} for n in range(1, 4)]
    for n in range(1, 4):
        jpg(tmp_path / f"{n}.jpg", n)
    write(tmp_path / "validation.json", [{**row, "image": f"{row['question_id']}.jpg"} for row in rows])
    task = load_task("vqav2", limit=9, seed=0, data=str(tmp_path))
    assert task.submission is None
    write(tmp_path / "test.json", [{"#": 1, "question": "What?", "answer": None, "image": "1.jpg"}])
    with pytest.raises(ValueError, match="needs at least one answer"):
        load_task("chartqa", limit=9, seed=0, data=str(tmp_path), split="test")


def test_an_id_that_is_no_number_loses_no_answer(tmp_path: Path):
    rows = [{**ROWS["docvqa"][1](n), "questionId": f"v{n}", "image": f"{n}.jpg"} for n in (1, 2)]
    for n in (1, 2):
        jpg(tmp_path / f"{n}.jpg", n)
    write(tmp_path / "test.jsonl", rows, lines=True)
    content = json.loads(submitted("docvqa", tmp_path, "test").read_text())
    assert [row["questionId"] for row in content] == ["v1", "v2"]

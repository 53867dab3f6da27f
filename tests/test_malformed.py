"""Benchmark files that are not what they should be: a broken file is named, an odd row is counted and stops nothing."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import layout
import layouts
import pyarrow.parquet as pq
import pytest

from mm1.eval.data.rows import TaskError
from mm1.eval.fewshot import draw_shots
from mm1.eval.harness import load_task
from mm1.eval.metrics.vqa import exact_match


def hub(name: str, change: Callable[[list[dict]], object], *, split: str = "validation", images=("image",)) -> Callable:
    """The hub's files of a task with the rows of one split changed."""

    def make(folder: Path) -> None:
        layouts.HUB[name](folder)
        path = next(folder.rglob(f"{split}-*.parquet"))
        rows = pq.read_table(path).to_pylist()
        rows = change(rows) or rows
        layout.parquet(path, rows, images=tuple(name for name in images if name in rows[0]))

    return make


def files(name: str, file: str, change: Callable[[str], str]) -> Callable:
    """The first release of a task with one text file changed."""

    def make(folder: Path) -> None:
        layouts.FILES[name](folder)
        path = next(folder.rglob(file))
        path.write_text(change(path.read_text()))

    return make


def put(**cells) -> Callable[[list[dict]], None]:
    return lambda rows: rows[2].update(cells)


def put_all(**cells) -> Callable[[list[dict]], None]:
    return lambda rows: [row.update(cells) for row in rows] and None


def without(name: str) -> Callable[[list[dict]], None]:
    return lambda rows: [row.pop(name) for row in rows] and None


def torn(folder: Path) -> None:
    layouts.vqav2(folder)
    path = next(folder.rglob("validation-*.parquet"))
    path.write_bytes(path.read_bytes()[:-200])


def gone(name: str, pattern: str) -> Callable:
    def make(folder: Path) -> None:
        layouts.FILES[name](folder)
        next(folder.rglob(pattern)).unlink()

    return make


def no_base64(text: str) -> str:
    image = text.splitlines()[1].rpartition("\t")[2]
    return text.replace(image, "%%%", 1)


def cut_picture(text: str) -> str:
    image = text.splitlines()[1].rpartition("\t")[2]
    return text.replace(image, base64.b64encode(base64.b64decode(image)[:40]).decode(), 1)


def one_less(name: str) -> Callable[[str], str]:
    """Remove a key from the third row."""

    def change(text: str) -> str:
        whole = json.loads(text)
        row = list(whole.values() if isinstance(whole, dict) else whole)[2]
        del row[name]
        return json.dumps(whole)

    return change


def fewer_answers(text: str) -> str:
    return text.replace('["A. Writer", "Yes"], "split": 3', '["A. Writer"], "split": 3', 1)


def fewer_annotations(text: str) -> str:
    whole = json.loads(text)
    return json.dumps(whole | {"annotations": whole["annotations"][1:]})


ONE_ANSWER = [{"answer": " ", "answer_confidence": "yes", "answer_id": 1}]

MALFORMED = {
    "no folder": ("vqav2", lambda folder: folder.rmdir(), "no folder .*; --data takes the folder of vqav2"),
    "empty folder": ("vqav2", lambda folder: None, "no split validation in .*; splits there: none"),
    "another split": ("scienceqa", lambda folder: layouts.HUB["textvqa"](folder), "splits there: train, validation"),
    "torn parquet": ("vqav2", torn, "validation-.* is no whole parquet file"),
    "no rows": ("ai2d", lambda folder: (folder / "test.json").write_text("[]"), "test.json has no rows"),
    "missing column": ("vqav2", hub("vqav2", without("question")), "row 0 has no column 'question'; found .*image"),
    "missing answers": ("textvqa", hub("textvqa", without("answers")), "has no column 'answers'"),
    "no pictures": ("vqav2", hub("vqav2", put_all(image=None)), "row 0 has no picture: found nothing"),
    "truth values as answers": ("docvqa", hub("docvqa", put_all(answers=[True])), r"each a text; found \[True\]"),
    "no tab": ("mme", files("mme", "0.txt", lambda text: text.replace("\t", " ")), "0.txt, line 1: a question, a tab"),
    "no JSON": (
        "vqav2",
        files("vqav2", "*val2014_questions.json", lambda text: text[:-9]),
        "s.json is no JSON",
    ),
    "a broken line": (
        "pope",
        files("pope", "*_random.json", lambda text: text + "{"),
        "line 7, is no JSON",
    ),
    "no list": ("docvqa", files("docvqa", "val*.json", lambda text: '{"data": 3}'), "a list of rows under 'data'"),
    "no mapping": ("mm_vet", files("mm_vet", "mm-vet.json", lambda text: "[1]"), "must map ids to rows; found list"),
    "renamed key": ("chartqa", files("chartqa", "test_human.json", lambda t: t.replace("label", "gold")), "no 'label'"),
    "no answer of the judge's side": (
        "llava_w",
        gone("llava_w", "answers_gpt4.jsonl"),
        "gpt4.jsonl is missing",
    ),
}

ODD = {
    "no picture": ("vqav2", hub("vqav2", put(image=None)), "no picture"),
    "damaged picture": ("vqav2", hub("vqav2", put(image={"bytes": b"PNG?", "path": None})), "unreadable picture"),
    "picture file missing": ("coco", gone("coco", "val2014/0.jpg"), "no picture"),
    "joined picture missing": (
        "gqa",
        hub("gqa", put(imageId="zz"), split="*_instructions/testdev", images=()),
        "no picture",
    ),
    "no references": ("docvqa", hub("docvqa", put(answers=[])), "no answer"),
    "blank references": ("vqav2", hub("vqav2", put(answers=ONE_ANSWER)), "no answer"),
    "hidden references": ("docvqa", hub("docvqa", put(answers=None)), "no answer"),
    "no question": ("vqav2", hub("vqav2", put(question=" ")), "no question"),
    "letter beyond the choices": (
        "mmbench",
        hub("mmbench", put(answer="D"), split="dev"),
        "an answer that is no choice",
    ),
    "number beyond the choices": ("ai2d", hub("ai2d", put(answer="4"), split="test"), "an answer that is no choice"),
    "choices that are no list": ("mmmu", hub("mmmu", put(options="[oak"), images=()), "choices that are no list"),
    "picture not given": (
        "mmmu",
        hub("mmmu", put(question="Is <image 4> it?"), images=()),
        "a picture that is not given",
    ),
    "neither yes nor no": ("pope", hub("pope", put(answer="maybe"), split="test"), "an answer that is no choice"),
    "unanswered question": ("okvqa", files("okvqa", "mscoco_val*", fewer_annotations), "no answer"),
    "nothing for the judge": (
        "llava_w",
        files("llava_w", "context.jsonl", lambda t: t.split("\n", 1)[1]),
        "a missing column",
    ),
    "more questions than answers": ("ocrvqa", files("ocrvqa", "dataset.json", fewer_answers), "no answer"),
    "one row without a key": ("chartqa", files("chartqa", "test_human.json", one_less("label")), "a missing column"),
    "one mapped row without a key": (
        "mm_vet",
        files("mm_vet", "mm-vet.json", one_less("imagename")),
        "a missing column",
    ),
    "no base64": ("mmbench", files("mmbench", "*.tsv", no_base64), "unreadable picture"),
    "cut base64": ("mmbench", files("mmbench", "*.tsv", cut_picture), "unreadable picture"),
    "no choices": ("ai2d", hub("ai2d", put(options=[]), split="test"), "no choices"),
    "choices of nothing": ("ai2d", hub("ai2d", put(options=None), split="test"), "no choices"),
    "answer not among choices": (
        "mathvista",
        hub("mathvista", put(answer="Perhaps"), split="testmini", images=("decoded_image",)),
        "an answer that is no choice",
    ),
}

SCORED = {
    "duplicate ids": ("vqav2", hub("vqav2", put(question_id=0)), "repeated id"),
    "one choice": ("ai2d", hub("ai2d", put(options=["oak"], answer="0"), split="test"), "one choice"),
    "the same choice twice": ("ai2d", hub("ai2d", put(options=["oak", "oak", "x"]), split="test"), "equal choices"),
    "no text of a choice": ("ai2d", hub("ai2d", put(options=["", "fern", "oak"]), split="test"), "empty choice"),
}


@pytest.mark.parametrize(("name", "make", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_file_is_named(name: str, make, message: str, tmp_path: Path):
    folder = tmp_path / "data-set"
    folder.mkdir()
    make(folder)
    with pytest.raises(TaskError, match=message):
        load_task(name, limit=100, seed=0, data=str(folder))


@pytest.mark.parametrize(("name", "make", "why"), ODD.values(), ids=ODD.keys())
def test_a_row_that_cannot_be_scored_is_left_out_and_counted(name: str, make, why: str, tmp_path: Path):
    (layouts.HUB | layouts.FILES)[name](tmp_path / "whole")
    whole = load_task(name, limit=100, seed=0, data=str(tmp_path / "whole"))
    make(tmp_path / "odd")
    task = load_task(name, limit=100, seed=0, data=str(tmp_path / "odd"))
    assert task.origin.left_out == {why: 1}
    assert len(task.queries) >= 5
    assert not whole.origin.left_out
    assert all(example is None or example.image.data for example in task.pool.read(list(range(task.pool.count))))
    assert len(task.pool.answers) >= 5


def test_shots_come_from_the_queries_split_where_no_row_is_of_the_training_split(tmp_path: Path):
    files("ocrvqa", "dataset.json", lambda text: text.replace('"split": 1', '"split": 2'))(tmp_path)
    task = load_task("ocrvqa", limit=100, seed=0, data=str(tmp_path))
    assert task.pool.count == len(task.queries) == 12


@pytest.mark.parametrize(("name", "make", "what"), SCORED.values(), ids=SCORED.keys())
def test_an_odd_row_that_can_be_scored_is_asked_and_named(name: str, make, what: str, tmp_path: Path):
    make(tmp_path)
    task = load_task(name, limit=100, seed=0, data=str(tmp_path))
    assert (len(task.queries), dict(task.origin.left_out)) == (6, {})
    assert [query.odd for query in task.queries] == [(), (), (what,), (), (), ()]
    assert len({query.id for query in task.queries}) == 6


def test_an_mme_picture_with_one_question_is_left_out_of_the_sums(tmp_path: Path):
    layouts.FILES["mme"](tmp_path)
    before = load_task("mme", limit=100, seed=0, data=str(tmp_path))
    path = tmp_path / "count" / "0.txt"
    path.write_text(path.read_text().splitlines()[0])
    task = load_task("mme", limit=100, seed=0, data=str(tmp_path))
    sums = []
    for one in (before, task):
        answers = [one.answer("yes", query) for query in one.queries]
        scores = exact_match(answers, [query.answers for query in one.queries])
        sums.append(one.scoring.totals(one.queries, answers, scores))
    assert sums[0]["perception"] == 2 * 50
    assert sums[1] == {"perception": 50, "cognition": 50, "pictures without two questions": 1}


def test_a_malformed_shot_is_never_drawn(tmp_path: Path):
    hub("vqav2", put(image=None), split="train")(tmp_path)
    task = load_task("vqav2", limit=100, seed=0, data=str(tmp_path))
    assert [shot is None for shot in task.pool.read([1, 2, 3])] == [False, True, False]
    assert {shot.id for shot in draw_shots(task, 0, shots=5, seed=0)} == {"20", "21", "23", "24", "25"}
    with pytest.raises(ValueError, match="5 examples to draw 6 shots"):
        draw_shots(task, 0, shots=6, seed=0)


def test_the_sample_takes_no_data():
    with pytest.raises(ValueError, match="task captions has its own data and form; leave --data out"):
        load_task("captions", limit=1, seed=0, data="x")

"""Benchmark files that are not what they should be: each is named, none is scored."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import layout
import layouts
import pyarrow.parquet as pq
import pytest

from mm1.eval.data.rows import TaskError
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
    "no picture": ("vqav2", hub("vqav2", put(image=None)), "row 2 has no picture: found nothing"),
    "damaged picture": ("vqav2", hub("vqav2", put(image={"bytes": b"PNG?", "path": None})), "row 2 .* cannot be read"),
    "picture file missing": ("coco", gone("coco", "val2014/0.jpg"), "row 0: the picture .*0.jpg is missing"),
    "joined picture missing": (
        "gqa",
        hub("gqa", put(imageId="zz"), split="*_instructions/testdev", images=()),
        "no picture 'zz'",
    ),
    "no references": ("docvqa", hub("docvqa", put(answers=[])), r"row 2 needs at least one answer.*found \[\]"),
    "blank references": ("vqav2", hub("vqav2", put(answers=ONE_ANSWER)), "row 2 needs at least one answer"),
    "hidden references": ("docvqa", hub("docvqa", put(answers=None)), "row 2 needs at least one answer.*None"),
    "numbers as answers": ("docvqa", hub("docvqa", put_all(answers=[3])), r"each a text; found \[3\]"),
    "duplicate ids": ("vqav2", hub("vqav2", put(question_id=0)), "rows 0 and 2 have one id, '0'"),
    "no question": ("vqav2", hub("vqav2", put(question=" ")), "row 2 has no question: found ' '"),
    "letter beyond the choices": ("mmbench", hub("mmbench", put(answer="D"), split="dev"), "one of A, B; found 'D'"),
    "number beyond the choices": ("ai2d", hub("ai2d", put(answer="4"), split="test"), "answer 4 of 4 choices"),
    "one choice": ("ai2d", hub("ai2d", put(options=["oak"]), split="test"), "two or more different texts"),
    "the same choice twice": ("ai2d", hub("ai2d", put(options=["oak", "oak"]), split="test"), "different texts"),
    "choices that are no list": ("mmmu", hub("mmmu", put(options="[oak"), images=()), "the choices are no list"),
    "picture not given": ("mmmu", hub("mmmu", put(question="Is <image 4> it?"), images=()), "<image 4> of 2 pictures"),
    "neither yes nor no": ("pope", hub("pope", put(answer="maybe"), split="test"), "must be yes or no; found 'maybe'"),
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
    "unanswered question": ("okvqa", files("okvqa", "mscoco_val*", fewer_annotations), "no answers to question 0"),
    "no base64": ("mmbench", files("mmbench", "*.tsv", no_base64), "row 0: the picture is no base64"),
    "cut base64": ("mmbench", files("mmbench", "*.tsv", cut_picture), "row 0 has a picture that cannot be read"),
    "no answer of the judge's side": (
        "llava_w",
        gone("llava_w", "answers_gpt4.jsonl"),
        "gpt4.jsonl is missing",
    ),
    "answer not among choices": (
        "mathvista",
        hub("mathvista", put(answer="Perhaps"), split="testmini", images=("decoded_image",)),
        "row 2 is not laid out as in AI4Math/MathVista: 'Perhaps' is not in list",
    ),
}


@pytest.mark.parametrize(("name", "make", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_file_is_named(name: str, make, message: str, tmp_path: Path):
    folder = tmp_path / "data-set"
    folder.mkdir()
    make(folder)
    with pytest.raises(TaskError, match=message):
        load_task(name, limit=100, seed=0, data=str(folder))


def test_an_mme_picture_with_one_question_is_not_scored(tmp_path: Path):
    layouts.FILES["mme"](tmp_path)
    path = tmp_path / "count" / "0.txt"
    path.write_text(path.read_text().splitlines()[0])
    task = load_task("mme", limit=100, seed=0, data=str(tmp_path))
    answers = [task.answer("yes", query) for query in task.queries]
    scores = exact_match(answers, [query.answers for query in task.queries])
    with pytest.raises(TaskError, match="MME asks two questions of each picture; count/0 has 1"):
        task.scoring.totals(task.queries, answers, scores)


def test_a_malformed_shot_is_named_when_it_is_drawn(tmp_path: Path):
    hub("vqav2", put(image=None), split="train")(tmp_path)
    task = load_task("vqav2", limit=100, seed=0, data=str(tmp_path))
    with pytest.raises(TaskError, match=r"train of .*, row 2 has no picture"):
        task.pool.read([1, 2])


def test_the_sample_takes_no_data():
    with pytest.raises(ValueError, match="task captions is of the shipped sample: it takes no data"):
        load_task("captions", limit=1, seed=0, data="x")

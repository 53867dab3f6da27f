"""Benchmarks with the odd rows of real releases: they run in full, give the official numbers, and name what is odd."""

import base64
import csv
import dataclasses
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from layout import cell, data, parquet, six
from rich.console import Console

from mm1.document import Document
from mm1.eval.answers_page import write_page
from mm1.eval.fewshot import prompt
from mm1.eval.harness import evaluate, load_task
from mm1.eval.model import Model, Reply, Request, ignore
from mm1.eval.results import Results, mean_scores, read_results, score_table
from mm1.eval.task_evaluation import Settings
from mm1.eval.tasks import mathvista as mathvista_task
from mm1.eval.tasks import mmmu


class Says(Model):
    """A model that writes what `says` maps a query's id to, else `otherwise`."""

    def __init__(self, says: dict[str, str], otherwise: str = ""):
        self.name, self.says, self.otherwise = f"says {sorted(says.items())}", says, otherwise

    def generate(self, requests, *, done=ignore):
        replies = [Reply(self.says.get(request.prompt.id, self.otherwise)) for request in requests]
        for number, reply in enumerate(replies):
            done(number, reply)
        return replies

    def loglikelihoods(self, requests, *, done=ignore):
        nats = [[-float(len(text)) for text in request.choices] for request in requests]
        for number, of_choices in enumerate(nats):
            done(number, of_choices)
        return nats

    def prompt_tokens(self, prompt: Document) -> int:
        return 1


def run(
    name: str, folder: Path, says: Callable[[Any], str], *, limit: int = 1000, settings: Any = None, **how: Any
) -> Results:
    """The results of a model that answers each query of a task with `says(query)`."""
    task = load_task(name, limit=limit, seed=0, data=str(folder), **how)
    model = Says({query.id: says(query) for query in task.queries})
    results = evaluate(model, [task], settings=Settings(folder / "eval", limit=limit, **(settings or {})), shots=(0,))
    write_page(folder / "eval", [task], results=results)
    return results


def gold(query) -> str:
    return query.answers[0]


def shown(results: Results) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(score_table(results))
    return console.export_text()


def ai2d(folder: Path) -> None:
    def row(n: int) -> dict[str, Any]:
        texts = {2: ["", "fern", "oak", "none"], 5: ["moss", "oak", "oak", "none"]}.get(n, ["moss", "fern", "oak", "x"])
        return {"question": f"Which {n}?", "options": texts, "answer": str(n % 4), "image": cell(n)}

    data(folder, "test", six(row, count=8))


def test_one_odd_row_stops_nothing_and_is_named_everywhere(tmp_path: Path):
    ai2d(tmp_path)
    results = run("ai2d", tmp_path, gold)
    (score,) = read_results(tmp_path / "eval").scores
    assert (score.score.mean, score.queries) == (100, 8)
    assert score.counted == {"empty choice": 1, "equal choices": 1}
    assert json.loads((tmp_path / "eval" / "summary.json").read_text())["cells"][0]["counted"] == score.counted
    for text in (shown(results), (tmp_path / "eval" / "answers.html").read_text()):
        assert "empty choice" in text
        assert "equal choices" in text


def test_an_empty_choice_is_not_listed_and_the_others_keep_their_letters(tmp_path: Path):
    ai2d(tmp_path)
    task = load_task("ai2d", limit=100, seed=0, data=str(tmp_path))
    query = task.queries[2]
    assert "Which 2?\nB. fern\nC. oak\nD. none\n" in task.style.ask(query)
    assert [task.answer(text, query) for text in ("C", "oak", "A")] == ["C", "C", "A"]
    shortest = Says({}).answer([Request(prompt(task, query, shots=[]), choices=query.choices)])
    assert [reply.text for reply in shortest] == ["C"], "an empty choice has no likelihood"


def test_the_summary_says_what_was_asked(tmp_path: Path):
    ai2d(tmp_path)
    (score,) = run("ai2d", tmp_path, gold, form="plain").scores
    assert (score.split, score.form, score.metric) == ("test", "plain", "same_word")
    hub, rows, digest = score.data.split(", ")
    assert (hub.partition("/")[2], rows, len(digest)) == ("ai2d", "8 rows", 12)
    other = tmp_path / "other"
    data(
        other, "test", [{"question": f"{n}?", "options": ["x", "y"], "answer": "1", "image": cell(n)} for n in range(8)]
    )
    assert run("ai2d", other, gold).scores[0].data.split(", ")[2] != digest


@pytest.mark.parametrize("limit", [3, 100])
def test_an_unreadable_row_is_left_out_at_any_limit(limit: int, tmp_path: Path):
    rows = six(lambda n: {"question": f"Which {n}?", "options": ["x", "y"], "answer": "1", "image": cell(n)}, count=9)
    rows[4]["image"] = {"bytes": b"no picture", "path": None}
    rows[7]["answer"] = "9"
    data(tmp_path, "test", rows)
    (score,) = run("ai2d", tmp_path, gold, limit=limit).scores
    assert score.score.mean == 100
    left_out = {name: count for name, count in score.counted.items() if name.startswith("left out: ")}
    assert score.queries + sum(left_out.values()) == min(limit, 9)
    if limit == 100:
        assert left_out == {"left out: unreadable picture": 1, "left out: an answer that is no choice": 1}


WORDS = ("one", "two", "three", "four")


def mmbench_rows(count: int = 6) -> list[dict[str, Any]]:
    """Questions with three copies each, whose choices are rotated; the copies stand after all questions."""
    rows = []
    for turn in range(4):
        for n in range(count):
            texts = WORDS[turn:] + WORDS[:turn]
            named = dict(zip("ABCD", texts, strict=True)) | {"answer": "ABCD"[texts.index(WORDS[n % 4])]}
            rows.append({"index": n + turn * 1_000_000, "question": f"Which {n}?", "hint": "nan", **named})
    return rows


def mmbench_tsv(folder: Path, rows: list[dict[str, Any]], *, name: str = "mmbench_dev_en.tsv") -> None:
    """The table of MMBench's release; a copy names the row that has its picture."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w", newline="") as file:
        table = csv.DictWriter(file, [*rows[0], "image"], delimiter="\t")
        table.writeheader()
        for row in rows:
            first = row["index"] % 1_000_000
            image = base64.b64encode(cell(first)["bytes"]).decode() if row["index"] == first else str(first)
            table.writerow({**row, "image": image})


def test_rotated_copies_count_as_one_question(tmp_path: Path):
    rows = mmbench_rows()
    mmbench_tsv(tmp_path / "tsv", rows)
    hub = [row | {"image": cell(row["index"] % 1_000_000)} for row in rows]
    parquet(tmp_path / "hub" / "en" / "dev-00000-of-00001.parquet", hub)
    draw = random.Random(1)
    says = {str(row["index"]): row["answer"] if draw.random() < 0.8 else "A" for row in rows}
    right = {row["index"]: says[str(row["index"])] == row["answer"] for row in rows}
    circular = [all(right[n + turn * 1_000_000] for turn in range(4)) for n in range(6)]
    vanilla = [right[n] for n in range(6)]
    assert 0 < sum(circular) < sum(vanilla) < 6
    for layout in ("tsv", "hub"):
        results = run("mmbench", tmp_path / layout, lambda query: says[query.id])
        (score,) = results.scores
        assert score.queries == 6
        assert score.score.mean == pytest.approx(100 * sum(circular) / 6)
        assert score.totals["circular"]["score"] == pytest.approx(100 * sum(circular) / 6)
        assert score.totals["vanilla"]["score"] == pytest.approx(100 * sum(vanilla) / 6)
        assert "vanilla" in shown(results)
        points = mean_scores(tmp_path / layout / "eval", score)
        assert points == {str(n): 100.0 * hit for n, hit in enumerate(circular)}
    assert run("mmbench", tmp_path / "tsv", gold).scores[0].score.mean == 100


def test_a_limit_takes_whole_questions_of_mmbench(tmp_path: Path):
    mmbench_tsv(tmp_path, mmbench_rows())
    task = load_task("mmbench", limit=2, seed=0, data=str(tmp_path))
    assert len(task.queries) == 8
    assert len(set(task.groups())) == 2


def test_mmbench_without_copies_has_vanilla_accuracy_alone(tmp_path: Path):
    mmbench_tsv(tmp_path, mmbench_rows()[:6], name="MMBench_DEV_EN.tsv")
    (score,) = run("mmbench", tmp_path, gold).scores
    assert (score.score.mean, list(score.totals)) == (100, ["vanilla"])


def test_letters_of_mmbench_stay_where_a_choice_is_empty(tmp_path: Path):
    rows = mmbench_rows()[:6]
    rows[2] |= {"A": "nan", "B": "Two", "C": "One", "D": "Cannot be determined", "answer": "B"}
    mmbench_tsv(tmp_path, rows)
    task = load_task("mmbench", limit=9, seed=0, data=str(tmp_path))
    assert task.style.ask(task.queries[2]).startswith("Which 2?\nB. Two\nC. One\nD. Cannot be determined\n")
    assert task.answer("two", task.queries[2]) == "B"
    (score,) = run("mmbench", tmp_path, gold).scores
    assert (score.score.mean, score.counted) == (100, {"empty choice": 1})


def test_letters_of_a_table_may_go_beyond_h(tmp_path: Path):
    """VLMEvalKit's table of MMMU has columns from A to I."""
    choices = {letter: f"plant {letter}" for letter in "ABCDEFGHI"}
    mmbench_tsv(tmp_path, [{**row, **choices, "answer": "I"} for row in mmbench_rows()])
    (score,) = run("mmbench", tmp_path, lambda query: "I").scores
    assert (score.score.mean, score.counted) == (100, {})


def test_mmmu_runs_in_full_with_equal_choices(tmp_path: Path):
    names = tuple(f"image_{k}" for k in range(1, 8))

    def row(n: int) -> dict[str, Any]:
        texts = ["['0.5', '0.5', '1', '2']", "['x', 'y']", "[]"][n % 3]
        named = {"id": f"validation_Math_{n}", "question": f"What {n} in <image 1>?", "explanation": ""}
        named |= {"question_type": "open" if n % 3 == 2 else "multiple-choice", "options": texts}
        images = {name: cell(n) if name == "image_1" else None for name in names}
        return {**named, **images, "answer": ["B", "A", "50%"][n % 3]}

    data(tmp_path, "validation", six(row, count=12), images=names)
    says = {0: "A", 3: "(B)", 1: "x", 4: "The answer is A.", 2: "So it is 50%", 5: "50", 8: "about 12"}
    (score,) = run("mmmu", tmp_path, lambda query: says.get(int(query.id.split("_")[-1]), "no idea")).scores
    assert score.queries == 12
    assert score.score.mean == pytest.approx(100 * 4 / 12)
    assert score.counted == {"equal choices": 4, "no answer read": 4}


def test_lists_of_mmmus_answers_may_have_quotes():
    lists = {"['1.5', 'x']": ["1.5", "x"], "[\"it's\", 'a, b']": ["it's", "a, b"], "$6,000": "$6,000"}
    lists |= {text: text for text in ("[2, 5)", "[x", "12", "None")}
    assert {text: mmmu.right_answer({"answer": text}) for text in lists} == lists


def test_pope_has_each_category_and_their_means(tmp_path: Path):
    def row(n: int) -> dict[str, Any]:
        named = {"id": str(n), "question_id": str(n // 3), "question": f"Is there a dog in image {n}?"}
        kinds = {"answer": ["yes", "no"][n // 3 % 2], "category": ["random", "popular", "adversarial"][n % 3]}
        return {**named, **kinds, "image_source": f"v{n}", "image": cell(n)}

    data(tmp_path, "test", six(row, count=24))
    wrong = {"0": "no", "1": "no", "7": "no", "4": "yes"}
    rows = {f"{row(n)['category']}/{n // 3}": str(n) for n in range(24)}
    results = run("pope", tmp_path, lambda query: wrong.get(rows[query.id], query.answers[0]))
    totals = {name: values["score"] for name, values in results.scores[0].totals.items()}
    right = {"random": (4, 3, 3), "popular": (4, 2, 3), "adversarial": (4, 4, 4)}  # true, right yes, said yes
    f1 = {name: 100 * 2 * hits / (true + said) for name, (true, hits, said) in right.items()}
    assert {name: totals[f"F1, {name}"] for name in right} == pytest.approx(f1)
    assert totals["F1, mean of categories"] == pytest.approx(sum(f1.values()) / 3)
    assert totals["accuracy, popular"] == pytest.approx(100 * 5 / 8)
    assert "adversarial" in shown(results)


def mathvista(folder: Path, *, count: int = 10) -> None:
    """Rows of each kind of MathVista, with equal choices in every fifth one."""
    kinds = [
        {"question_type": "multi_choice", "answer_type": "text", "choices": ["4", "4", "5"], "answer": "4"},
        {"question_type": "free_form", "answer_type": "integer", "answer": "6", "unit": "cm"},
        {"question_type": "free_form", "answer_type": "float", "answer": "1.5", "precision": 1.0},
        {"question_type": "free_form", "answer_type": "list", "answer": "[1, 2]"},
        {"question_type": "multi_choice", "answer_type": "text", "choices": ["Yes", "No"], "answer": "No"},
    ]
    blank = {"choices": None, "unit": None, "precision": None}

    def row(n: int) -> dict[str, Any]:
        named = {"pid": str(n), "question": f"What {n}?", "image": f"images/{n}.jpg", "query": "?"}
        return {**blank, **named, **kinds[n % 5], "decoded_image": cell(n)}

    data(folder, "testmini", six(row, count=count), images=("decoded_image",))


def test_mathvista_runs_in_full_with_equal_choices(tmp_path: Path):
    mathvista(tmp_path)
    says = {"0": "B", "5": "The answer is (C) 5", "1": "There are six.", "6": "In 2014 it was 6 cm in 3 regions."}
    says |= {"2": "So it is 1.49.", "7": "1 or 2", "3": "It is [1, 2].", "8": "[2, 1]", "4": "noo", "9": "(B) No"}
    (score,) = run("mathvista", tmp_path, lambda query: says[query.id]).scores
    path = tmp_path / "eval" / "mathvista-0shot.jsonl"
    right = {line["query"]: line["score"] for line in map(json.loads, path.read_text().splitlines())}
    assert right == {n: float(n not in ("5", "7", "8")) for n in "0123456789"}
    assert score.counted == {"equal choices": 2, "no answer read": 1}


def test_mathvista_without_a_precision_rounds_to_whole_numbers(tmp_path: Path):
    mathvista(tmp_path)
    (query, *_) = load_task("mathvista", limit=99, seed=0, data=str(tmp_path)).queries[2:]
    for precision, decimals in (("2.0", 2), ("1", 1), ("None", 0), ("nan", 0)):
        metadata = {**query.metadata, "precision": precision}
        assert mathvista_task.decimals_of(dataclasses.replace(query, metadata=metadata)) == decimals


def test_mathvista_asks_with_the_official_hint_and_unit(tmp_path: Path):
    mathvista(tmp_path)
    task = load_task("mathvista", limit=99, seed=0, data=str(tmp_path))
    multiple, integer, floating = (task.style.ask(query) for query in task.queries[:3])
    assert multiple.startswith(
        "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at"
    )
    assert multiple.endswith("\nQuestion: What 0?\nChoices:\n(A) 4\n(B) 4\n(C) 5")
    assert integer.endswith(
        "requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the end.\n"
        "Question: What 1? (Unit: cm)"
    )
    assert "with one decimal place" in floating
    plain = load_task("mathvista", limit=99, seed=0, data=str(tmp_path), form="plain")
    assert "(Unit: cm)" in plain.style.ask(plain.queries[1])


def flickr30k(folder: Path, *, column: str) -> None:
    def row(n: int) -> dict[str, Any]:
        of_row = ["train", "train", "val", "test"][n % 4]
        captions = {"caption": [f"thing {n}", "a shape", f"{n} here"], "sentids": ["1"]}
        return {"image": cell(n), **captions, column: of_row, "img_id": str(n), "filename": f"{n}.jpg", "set": "test"}

    data(folder, "test", six(row, count=16))


@pytest.mark.parametrize("column", ["split", "karpathy_split", "partition"])
def test_karpathys_split_is_read_from_a_column_of_any_name(column: str, tmp_path: Path):
    flickr30k(tmp_path, column=column)
    task = load_task("flickr30k", limit=99, seed=0, data=str(tmp_path))
    assert [query.id for query in task.queries] == ["3", "7", "11", "15"]
    assert task.pool.count == 8


def test_one_query_has_no_other_picture_to_be_asked_blind_with(tmp_path: Path):
    ai2d(tmp_path)
    with pytest.raises(ValueError, match=r"pictures cannot be exchanged; take more queries \(--limit\)$"):
        run("ai2d", tmp_path, gold, limit=1)


@pytest.mark.parametrize(
    "options",
    [
        ["oak", "fern", "moss"],
        "['oak', 'fern', 'moss']",
        ' ["oak", "fern", "moss"]',
        {"A": "oak", "B": "fern", "C": "moss", "D": None},
        {"label": ["A", "B", "C"], "text": ["oak", "fern", "moss"]},
        ["oak", "fern", "moss", None, None],
    ],
    ids=["list", "text", "spaced text", "by letter", "columns", "padded"],
)
def test_choices_are_read_in_the_layouts_of_the_hub(options: Any, tmp_path: Path):
    rows = six(lambda n: {"question": f"Which plant {n}?", "options": options, "answer": "1", "image": cell(n)})
    data(tmp_path, "test", rows)
    task = load_task("ai2d", limit=9, seed=0, data=str(tmp_path))
    assert {query.choices[:3] for query in task.queries} == {("oak", "fern", "moss")}
    assert {query.answers for query in task.queries} == {("B",)}
    assert all(" D." not in text for text in (prompt(task, query, shots=()).text for query in task.queries))


@pytest.mark.parametrize("options", ["", " ", "3", "'oak'", "(" * 5000, "oak, fern", "{'x': 1}"])
def test_choices_that_are_no_list_leave_one_row_out(options: str, tmp_path: Path):
    def row(n: int) -> dict[str, Any]:
        choices = options if n == 2 else "['oak', 'fern']"
        return {"question": f"Which plant {n}?", "options": choices, "answer": "1", "image": cell(n)}

    data(tmp_path, "test", six(row))
    task = load_task("ai2d", limit=9, seed=0, data=str(tmp_path))
    assert (len(task.queries), task.origin.left_out) == (5, {"choices that are no list": 1})


@pytest.mark.parametrize(
    ("answers", "texts"), [([3, 5], ["3", "5"]), ([2.5, 3.0, None], ["2.5", "3"]), ([1.0, None], ["B"])]
)
def test_answers_that_are_numbers_are_read(answers: list, texts: list[str], tmp_path: Path):
    """pandas writes a column of numbers with an empty cell as floats: 1.0 is choice number 1."""
    name, choices = ("ai2d", {"options": ["oak", "fern"]}) if texts == ["B"] else ("chartqa", {"type": "human_test"})
    rows = [{"question": "What?", "answer": one, "image": cell(n), **choices} for n, one in enumerate(answers)]
    data(tmp_path, "test", rows)
    task = load_task(name, limit=9, seed=0, data=str(tmp_path))
    assert [query.answers[0] for query in task.queries] == texts
    assert task.origin.left_out == ({"no answer": 1} if "2.5" in texts else task.origin.left_out)


def test_halves_of_characters_in_json_stop_nothing(tmp_path: Path):
    """A text cut off within a character, as JavaScript cuts it, is no Unicode, which prompts and files must be."""
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(cell(number)["bytes"])
    texts = ["Which? \\ud83d", "Which? \\ud83d\\ude00", "Which? \\\\ud83d"]
    rest = '"options": ["oak", "fern"], "answer": "1"'
    lines = [f'{{"question": "{text}", "image": "{number}.png", {rest}}}' for number, text in enumerate(texts)]
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    (score,) = run("ai2d", tmp_path, gold).scores
    assert (score.queries, score.score.mean) == (3, 100)
    task = load_task("ai2d", limit=9, seed=0, data=str(tmp_path))
    assert [query.question for query in task.queries] == ["Which? \ufffd", "Which? \U0001f600", "Which? \\ud83d"]

"""Benchmarks with the odd rows of real releases: they run in full, give the official numbers, and name what is odd."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from layout import cell, data, six
from rich.console import Console

from mm1.document import Document
from mm1.eval.answers_page import write_page
from mm1.eval.fewshot import prompt
from mm1.eval.harness import evaluate, load_task
from mm1.eval.model import Model, Reply, Request, ignore
from mm1.eval.results import Results, read_results, score_table
from mm1.eval.task_evaluation import Settings


class Says(Model):
    """A model that writes what `says` maps a query's id to, else `otherwise`."""

    def __init__(self, says: dict[str, str], otherwise: str = ""):
        self.name, self.says, self.otherwise = "says", says, otherwise

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


def run(name: str, folder: Path, says: Callable[[Any], str], *, limit: int = 1000, **how) -> Results:
    """The results of a model that answers each query of a task with `says(query)`."""
    task = load_task(name, limit=limit, seed=0, data=str(folder), **how)
    model = Says({query.id: says(query) for query in task.queries})
    results = evaluate(model, [task], settings=Settings(folder / "eval", limit=limit), shots=(0,))
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

"""A query's prompt, answer and score are the same at every limit."""

import dataclasses
import hashlib
from itertools import pairwise
from pathlib import Path

import layouts
import pytest
import small
from layout import cell, data, six
from test_protocol import Echo, reply

from mm1.eval.comparison import compare
from mm1.eval.harness import evaluate, load_task
from mm1.eval.metrics.captions import cider, cider_within, document_frequencies
from mm1.eval.model import prompt_hash
from mm1.eval.models import open_model
from mm1.eval.results import read_answers
from mm1.eval.shots import DEFAULT, Protocol
from mm1.eval.task_evaluation import Settings
from mm1.train.run import train_run

WORDS = [
    "a",
    "red",
    "blue",
    "green",
    "small",
    "large",
    "dog",
    "cat",
    "bird",
    "runs",
    "sits",
    "on",
    "under",
    "the",
    "grass",
    "table",
    "house",
]


def caption(*seeds: object) -> str:
    digest = hashlib.sha256(repr(seeds).encode()).digest()
    return " ".join(WORDS[byte % len(WORDS)] for byte in digest[:8])


def nocaps(folder: Path) -> None:
    """Forty pictures with two captions each, of few words, so that n-grams are shared by some."""

    def row(number: int) -> dict:
        named = {"image_coco_url": "", "image_file_name": f"{number}.jpg", "image_id": number}
        return {"image": cell(number), **named, "annotations_captions": [caption(number, n) for n in range(2)]}

    data(folder, "validation", six(row, count=40))


class Says(Echo):
    """A caption that depends on the whole prompt."""

    def generate(self, requests, *, done):
        return reply([caption(prompt_hash(request.prompt)) for request in requests], done)


@pytest.mark.parametrize(
    "protocol", [DEFAULT, Protocol("same"), Protocol("similar")], ids=["default", "same", "similar"]
)
def test_a_limit_changes_no_query(protocol: Protocol, tmp_path: Path):
    nocaps(tmp_path / "data")
    by_limit = []
    for limit in (8, 20, 99):
        task = load_task("nocaps", limit=limit, seed=0, data=str(tmp_path / "data"))
        settings = Settings(tmp_path / str(limit) / "eval", limit=limit, protocol=protocol)
        results = evaluate(Says(), [task], settings=settings, shots=(0, 3))
        answers = [read_answers(settings.folder, score) for score in results.scores]
        by_limit.append([{one.query: (one.prompt, one.references, one.own) for one in of_cell} for of_cell in answers])
    assert [len(cells[0]) for cells in by_limit] == [8, 20, 40]
    assert len({own.score for _, _, own in by_limit[0][1].values()}) > 4
    for fewer, more in pairwise(by_limit):
        for ours, theirs in zip(fewer, more, strict=True):
            assert ours == {query: theirs[query] for query in ours}
    for limit in (8, 20):
        for one in compare(tmp_path / str(limit), tmp_path / "99"):
            assert (one.difference.mean, one.difference.low, one.difference.high) == (0, 0, 0)


def test_shots_depend_on_the_query_alone(tmp_path: Path):
    layouts.vqav2(tmp_path)
    whole = load_task("vqav2", limit=99, seed=0, data=str(tmp_path))
    part = dataclasses.replace(whole, queries=whole.queries[2:][::-1])
    settings = [Settings(tmp_path / name) for name in ("whole", "part")]
    shots: list[dict[str, list[str]]] = []
    for task, one in zip((whole, part), settings, strict=True):
        (score,) = evaluate(Says(), [task], settings=one, shots=(2,)).scores
        shots.append({answer.query: answer.prompt.shots for answer in read_answers(one.folder, score)})
    assert shots[1] == {query: shots[0][query] for query in shots[1]}


def test_frequencies_of_all_queries_are_the_default():
    references = [[caption(number, n) for n in range(3)] for number in range(12)]
    answers = [caption(number) for number in range(12)]
    whole = cider(answers, references)
    assert cider_within(references)(answers[:3], references[:3]).tolist() == whole[:3].tolist()
    assert cider(answers[:3], references[:3]).tolist() != whole[:3].tolist()
    assert document_frequencies(references).queries == 12


@pytest.mark.parametrize(
    ("name", "shots"),
    [
        pytest.param("captions", (0, 2), marks=pytest.mark.long),
        pytest.param("easy_vqa", (0,), marks=pytest.mark.nightly),
    ],
)
def test_a_run_answers_the_same_at_limits_50_200_and_all(
    name: str, shots: tuple[int, ...], stores: dict[str, Path], tmp_path: Path
):
    """The whole splits of the shipped sample: 450 and 9,673 queries, in batches of other queries at each limit."""
    run = train_run(small.run(stores), tmp_path / "run")
    model = open_model(str(run))
    cells = []
    for limit in (50, 200, 10**6):
        task = load_task(name, limit=limit, seed=0)
        settings = Settings(tmp_path / str(limit) / "eval", limit=limit, protocol=Protocol(max_tokens=8))
        results = evaluate(model, [task], settings=settings, shots=shots)
        answers = [read_answers(settings.folder, score) for score in results.scores]
        cells.append([{one.query: (one.prompt, one.references, one.own) for one in cell} for cell in answers])
    assert [len(of_limit[0]) for of_limit in cells[:2]] == [50, 200]
    assert len(cells[2][0]) == {"captions": 450, "easy_vqa": 9673}[name]
    assert len({own.text for _, _, own in cells[2][0].values()}) > 1
    for fewer, more in pairwise(cells):
        for ours, theirs in zip(fewer, more, strict=True):
            assert ours == {query: theirs[query] for query in ours}

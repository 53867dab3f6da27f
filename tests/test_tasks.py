"""Published benchmarks: every layout is read, every task's own right answers are right, shots come from training."""

from pathlib import Path

import layouts
import layouts_tuned
import numpy as np
import pytest

from mm1.document import Document, Image, Mark, Text
from mm1.eval import fewshot
from mm1.eval.baselines import chance_answers, majority_answer
from mm1.eval.blind import exchange_images
from mm1.eval.data.published import Published
from mm1.eval.fewshot import Task
from mm1.eval.harness import load_task
from mm1.eval.tasks import mathvista, mmmu, realworldqa

LAYOUTS = [(name, "hub", make) for name, make in layouts.HUB.items()]
LAYOUTS += [(name, "files", make) for name, make in layouts.FILES.items()]
OWN_TRAINING = {"coco", "flickr30k", "textcaps", "vqav2", "textvqa", "gqa", "scienceqa", "mmmu"}


def read(name: str, folder: Path, **changes) -> Task:
    return load_task(name, limit=100, seed=0, data=str(folder), **changes)


@pytest.mark.parametrize(("name", "kind", "make"), LAYOUTS, ids=[f"{name}-{kind}" for name, kind, _ in LAYOUTS])
def test_a_published_layout_is_read_and_its_answers_are_right(name: str, kind: str, make, tmp_path: Path):
    make(tmp_path)
    task = read(name, tmp_path)
    assert len(task.queries) >= 6
    assert len({query.id for query in task.queries}) == len(task.queries)
    assert all(query.image.data for query in task.queries)
    for form in ("plain", "chat"):
        in_form = read(name, tmp_path, form=form)
        drawn = fewshot.draw_shots(in_form, 0, shots=2, seed=0)
        document = fewshot.prompt(in_form, in_form.queries[0], shots=drawn)
        assert len(document.images) >= 3
        assert in_form.queries[0].question.split("<image")[0] in document.text
        assert ("user" in [piece.name for piece in document.pieces if isinstance(piece, Mark)]) == (form == "chat")
    query_images = {query.image for query in task.queries}
    shot_images = {shot.image for shot in task.pool.read([0, 1, 2])}
    if name in OWN_TRAINING:
        assert not query_images & shot_images
    right = [task.answer(f" {query.answers[0]}", query) for query in task.queries]
    if task.scoring.judge is None:
        scores = task.scoring.metric(right, [query.answers for query in task.queries])
        wrong = task.scoring.metric(
            [task.answer("zzz", query) for query in task.queries], [q.answers for q in task.queries]
        )
        assert scores.mean() > 0.99
        assert wrong.mean() <= 0.5
        if task.scoring.totals is not None:
            assert min(task.scoring.totals(task.queries, right, scores).values()) > 0
    assert majority_answer(task) in task.pool.answers
    assert len(chance_answers(task, seed=0)) == len(task.queries)


def test_every_published_task_has_a_layout_and_a_source():
    import pkgutil

    from mm1.eval import tasks

    names = {module.name for module in pkgutil.iter_modules(tasks.__path__)}
    by_name = {name: __import__(f"mm1.eval.tasks.{name}", fromlist=["task"]).task for name in names}
    published = {name: task for name, task in by_name.items() if isinstance(task, Published)}
    assert published.keys() == layouts.HUB.keys() | layouts.FILES.keys()
    for name, task in published.items():
        assert task.name == name
        assert task.source.paper.startswith("https://")


def test_hub_and_files_are_asked_alike(tmp_path: Path):
    for name in ("vqav2", "mmbench", "seed", "infovqa", "mathvista"):
        layouts.HUB[name](tmp_path / "hub" / name)
        layouts.FILES[name](tmp_path / "files" / name)
        hub, files = read(name, tmp_path / "hub"), read(name, tmp_path / "files")
        assert [(q.id, q.question, q.choices, q.answers, q.image) for q in hub.queries] == [
            (q.id, q.question, q.choices, q.answers, q.image) for q in files.queries
        ]


def test_a_limit_draws_queries_by_the_seed(tmp_path: Path):
    layouts.vqav2(tmp_path)
    drawn = [[q.id for q in load_task("vqav2", limit=3, seed=s, data=str(tmp_path)).queries] for s in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len({tuple(ids) for ids in drawn}) > 1
    assert all(len(ids) == 3 for ids in drawn)


def test_the_questions_of_one_mme_picture_stay_together(tmp_path: Path):
    layouts_tuned.mme(tmp_path)
    for limit, count in ((2, 2), (3, 2), (5, 4)):
        task = load_task("mme", limit=limit, seed=1, data=str(tmp_path))
        assert len(task.queries) == count
        assert {[q.group for q in task.queries].count(q.group) for q in task.queries} == {2}


def test_pictures_stand_where_the_question_shows_them(tmp_path: Path):
    layouts_tuned.mmmu(tmp_path)
    task = load_task("mmmu", limit=9, seed=0, data=str(tmp_path))
    query = next(query for query in task.queries if query.choices)
    shape = [type(piece) for piece in fewshot.prompt(task, query, shots=[]).pieces]
    assert shape == [Mark, Text, Image, Text, Image, Text, Mark]
    exchanged = exchange_images(task.queries, seed=0)
    assert all(
        len(ours.more_images) == len(theirs.more_images) for ours, theirs in zip(task.queries, exchanged, strict=True)
    )
    assert all(
        not {ours.image, *ours.more_images} & {theirs.image, *theirs.more_images}
        for ours, theirs in zip(task.queries, exchanged, strict=True)
    )
    assert mmmu.right_answer({"answer": "['1.5', 'x']"}) == ["1.5", "x"]


def test_guessing_letters_knows_how_many_there_are(tmp_path: Path):
    layouts_tuned.mmbench(tmp_path)
    task = load_task("mmbench", limit=9, seed=0, data=str(tmp_path))
    guessed = [chance_answers(task, seed=0, draw=draw) for draw in range(40)]
    for number, query in enumerate(task.queries):
        assert {answers[number] for answers in guessed} == set("ABCDEFG"[: len(query.choices)])


def test_choices_are_read_out_of_a_question():
    row = {"question": "Which way?\n\nA. left\nB. on\nPlease answer directly with only the letter.", "answer": "B"}
    assert realworldqa.question(row).strip() == "Which way?"
    assert [text for _, text in realworldqa.CHOICE.findall(row["question"])] == ["left", "on"]


def test_math_answers_are_read_by_the_question(tmp_path: Path):
    layouts_tuned.mathvista(tmp_path)
    selected, free = load_task("mathvista", limit=9, seed=0, data=str(tmp_path)).queries[:2]
    assert mathvista.parse("The answer is (B) No", selected) == "B"
    assert mathvista.parse("So it is 1.49", free) == "1.5"


def test_a_prompt_is_one_document(tmp_path: Path):
    layouts_tuned.scienceqa(tmp_path)
    task = load_task("scienceqa", limit=2, seed=0, data=str(tmp_path), form="plain")
    document = fewshot.prompt(task, task.queries[0], shots=[])
    assert isinstance(document, Document)
    assert "A. red\nB. blue" in document.text
    assert document.text.endswith("Answer:")
    assert np.all([query.reasoning.startswith("It is blue") for query in task.queries])

"""Reading rendered pages: the score is the character error that others compute, and the experiment is planned."""

import random
from pathlib import Path

import numpy as np
import pytest

from mm1.ablate.plan import make_plan
from mm1.eval.harness import load_task
from mm1.eval.metrics.transcription import characters_right
from mm1.prepare.pipeline import prepare
from mm1.prepare.request import parse_request
from mm1.recipes.ablations.index import ablation

ROOT = Path(__file__).parents[1]


def test_the_score_is_one_minus_the_character_error_rate():
    nltk = pytest.importorskip("nltk")
    chance = random.Random(0)
    right = ["".join(chance.choices("abc de", k=chance.randint(5, 40))).strip() or "a" for _ in range(60)]
    right = [" ".join(text.split()) for text in right]
    read = ["".join(c for c in text if chance.random() < 0.8) + chance.choice(["", " x"]) for text in right]
    distances = [nltk.edit_distance(text, " ".join(ours.split())) for text, ours in zip(right, read, strict=True)]
    errors = [distance / len(text) for distance, text in zip(distances, right, strict=True)]
    scores = characters_right(read, [(text,) for text in right])
    assert scores == pytest.approx(np.maximum(0, 1 - np.array(errors)))


def test_white_space_counts_as_one_space_and_nonsense_as_nothing():
    texts = [("a b\nc",), ("a b\nc",), ("a b\nc",)]
    assert characters_right(["a  b c", "", "zzzz zzzz zzzz"], texts).tolist() == [1, 0, 0]


def test_the_right_transcriptions_score_full_marks(tmp_path: Path):
    prepare(parse_request(["rendered_text", "text=sample:text-test", "count=6", "page_side=256"]), tmp_path / "pages")
    task = load_task("transcription", limit=4, seed=0, data=str(tmp_path / "pages"))
    answers = [task.answer(f" {query.answers[0]} ", query) for query in task.queries]
    assert len(answers) == 4
    assert task.scoring.metric(answers, [query.answers for query in task.queries]).tolist() == [1] * 4
    assert set(task.pool.answers) >= {query.answers[0] for query in task.queries}
    with pytest.raises(ValueError, match="no pages in nowhere: mm1 prepare rendered_text"):
        load_task("transcription", limit=4, seed=0, data="nowhere")
    with pytest.raises(ValueError, match="leave --form out, which only published"):
        load_task("transcription", limit=4, seed=0, form="plain")


def test_the_experiment_compares_three_resolutions_with_the_same_pixels_in_two(tmp_path: Path):
    plan = make_plan(ablation(f"{ROOT}/benchmarks/reading.py", "tiny"), tmp_path, seeds=3)
    assert [arm.name for arm in plan.arms] == ["96 px", "stretched to 192 px", "192 px in tiles"]
    last = [plan.runs[arm.runs[0]].run for arm in plan.arms]
    assert [run.model.vision.image_size for run in last] == [96, 192, 96]
    assert [run.model.tiling.kind for run in last] == ["none", "none", "mm1"]
    assert len(plan.runs) == 1 + 1 + 3 + 9

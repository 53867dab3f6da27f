"""Whose rules a task is asked under: prompts, stop strings and the reading of answers of each source."""

from pathlib import Path

import layouts
import layouts_tuned
import pytest
from test_protocol import Echo

from mm1.eval import command
from mm1.eval.data.styles import FEW_SHOT_VQA
from mm1.eval.fewshot import Task, prompt
from mm1.eval.harness import evaluate, load_task
from mm1.eval.results import read_answers, read_results
from mm1.eval.shots import DEFAULT, RULES, Protocol
from mm1.eval.task_evaluation import Settings


def load(name: str, folder: Path, rules: str, **how: str) -> Task:
    return load_task(name, limit=99, seed=0, data=str(folder), rules=rules, **how)


def words(task: Task) -> str:
    return prompt(task, task.queries[0], shots=[]).text


def test_each_source_asks_in_its_own_words(tmp_path: Path):
    for name in ("vqav2", "nocaps", "vizwiz", "textvqa"):
        layouts.HUB[name](tmp_path / name)
    expected = {
        ("default", "vqav2"): " Question: What? Short answer:",
        ("mm1", "vqav2"): " Question: What? Short answer:",
        ("official", "vqav2"): " Question: What? Short answer:",
        ("openflamingo", "vqav2"): "Question:What? Short answer:",
        ("lmms-eval", "vqav2"): "What?\nAnswer the question using a single word or phrase.",
        ("mm1", "nocaps"): " A photo of",
        ("openflamingo", "nocaps"): "Output:",
        ("lmms-eval", "nocaps"): "Provide a one-sentence caption for the provided image.",
        ("lmms-eval", "textvqa"): "What?\nAnswer the question using a single word or phrase.",
    }
    for (rules, name), text in expected.items():
        assert words(load(name, tmp_path, rules)) == text, (rules, name)
    assert "respond with 'Unanswerable'" in words(load("vizwiz", tmp_path, "lmms-eval"))


def test_each_source_ends_and_reads_answers_in_its_own_way(tmp_path: Path):
    layouts.vqav2(tmp_path)
    written = "3.5, or so"
    read = {rules: load("vqav2", tmp_path, rules) for rules in RULES}
    answers = {rules: task.answer(written, task.queries[0]) for rules, task in read.items()}
    cut = {"mm1": "3.5", "openflamingo": "3.5"}
    assert answers == {"default": written, "lmms-eval": written, "official": written} | cut
    assert [read[rules].style.max_tokens for rules in RULES] == [32, 16, 5, 16, 32]
    assert [rules for rules in RULES if "," in read[rules].style.stops] == ["mm1"]


def test_a_source_without_rules_for_a_task_says_so(tmp_path: Path):
    layouts_tuned.mmbench(tmp_path / "mmbench")
    layouts.vqav2(tmp_path / "vqav2")
    with pytest.raises(ValueError, match="--protocol openflamingo has no rules for task mmbench"):
        load("mmbench", tmp_path, "openflamingo")
    with pytest.raises(ValueError, match="--protocol lmms-eval asks vqav2 in chat form; leave --form plain out"):
        load("vqav2", tmp_path, "lmms-eval", form="plain")
    with pytest.raises(ValueError, match="takes no rules"):
        load_task("captions", limit=1, seed=0, rules="openflamingo")


def test_the_score_records_the_rules(tmp_path: Path):
    layouts.vqav2(tmp_path / "vqav2")
    for rules in RULES:
        settings = Settings(tmp_path / "eval", protocol=command.under_rules(Protocol(rules=rules)))
        evaluate(Echo(), [load("vqav2", tmp_path, rules)], settings=settings, shots=(0,))
    names = [score.name for score in read_results(tmp_path / "eval").scores]
    assert names == [
        f"vqav2-0shot{suffix}" for suffix in ("", "-lmms-eval", "-mm1", "-official", "-openflamingo-textonly2-beams3")
    ]
    flamingo = read_results(tmp_path / "eval").scores[-1]
    shown = read_answers(tmp_path / "eval", flamingo)[0].prompt.text
    assert (shown.count("<image"), shown.count("Question:")) == (1, 3)
    assert command.under_rules(DEFAULT) == DEFAULT
    assert set(FEW_SHOT_VQA) <= layouts.HUB.keys()

"""Whose rules a task is asked under: prompts, stop strings and the reading of answers of each source."""

from dataclasses import replace
from pathlib import Path

import layouts
import layouts_tuned
import pytest
from test_protocol import Echo

from mm1.eval import command
from mm1.eval.data.styles import FEW_SHOT_VQA, styles_of
from mm1.eval.fewshot import Task, prompt
from mm1.eval.harness import evaluate, load_task
from mm1.eval.metrics.vqa import vqa_accuracy, vqa_accuracy_evalai
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


def test_lmms_eval_asks_each_task_as_its_own_code(tmp_path: Path):
    layouts.HUB["vizwiz"](tmp_path / "vizwiz")
    for name in ("mmmu", "mmbench", "mme"):
        getattr(layouts_tuned, name)(tmp_path / name)
    read = {name: load(name, tmp_path, "lmms-eval") for name in ("vizwiz", "mmmu", "mmbench", "mme")}
    prompts = {name: task.style.ask(replace(task.queries[1], question="is it so?")) for name, task in read.items()}
    letter = "Answer with the option's letter from the given choices directly."
    assert prompts["vizwiz"].startswith("Is it so?\nWhen the provided information is insufficient")
    assert prompts["mmmu"] == "is it so?\n\nAnswer the question using a single word or phrase."
    multiple = read["mmmu"].style.ask(read["mmmu"].queries[0])
    assert multiple.endswith(f"\nA. a red one\nB. <image 2>\n\n{letter}")
    hinted = read["mmbench"].style.ask(read["mmbench"].queries[1])
    assert hinted == f"Look. Which? There are several options:\nA. red\nB. blue\nC. green\n{letter}"
    said = read["mme"].style.ask(read["mme"].queries[1])
    assert said == "Is it 1?\nAnswer the question using a single word or phrase."
    assert read["vizwiz"].style.stops == ("ASSISTANT:",)
    assert styles_of("coco", "caption", rules="lmms-eval").forms["chat"].ask(read["mme"].queries[0]) == (
        "Describe the image briefly."
    )


def test_lmms_eval_reads_letters_and_words_as_its_own_code(tmp_path: Path):
    makers = {"pope": layouts_tuned.pope, "scienceqa": layouts_tuned.scienceqa, "seed": layouts_tuned.seed}
    makers |= {"mme": layouts_tuned.mme, "ai2d": layouts_tuned.ai2d, "gqa": layouts.HUB["gqa"]}
    for name, make in makers.items():
        make(tmp_path / name)
    texts = ("B", "b.", "B. cat", "(B)", "The answer is B.", "Both")
    expected = {"scienceqa": "101000", "seed": "111001", "ai2d": "111100"}
    for name, right in expected.items():
        task = load(name, tmp_path, "lmms-eval")
        read = [task.answer(text, task.queries[0]) for text in texts]
        assert "".join(f"{score:.0f}" for score in task.scoring.metric(read, [["B"]] * len(texts))) == right, name
    words = {
        "pope": {"Yes": "yes", "No": "no", "Yes.": "", "no, it is not": ""},
        "mme": {"Y": "yes", "n.": "no", "No, it is not": "no", "It is": "other"},
    }
    for name, read_as in words.items():
        task = load(name, tmp_path, "lmms-eval")
        assert {text: task.answer(text, task.queries[0]) for text in read_as} == read_as
    gqa = load("gqa", tmp_path, "lmms-eval")
    read = [gqa.answer(text, gqa.queries[0]) for text in ("T-Shirt", "tshirt.", "t shirt")]
    assert gqa.scoring.metric(read, [["t-shirt"]] * 3).tolist() == [1, 1, 0]


def test_textvqa_is_scored_by_its_own_normalisation(tmp_path: Path):
    people = [["smith, john's"] * 10] * 4
    answers = ["smith, john's", "Smith John 's?", "smith,john's", "smith john"]
    assert vqa_accuracy_evalai(answers, people).tolist() == [1, 1, 0, 0]
    assert vqa_accuracy(answers, people).tolist() == [1, 0, 1, 0]
    layouts.HUB["textvqa"](tmp_path / "textvqa")
    metrics = {rules: load("textvqa", tmp_path, rules).scoring.metric for rules in ("official", "lmms-eval", "default")}
    assert metrics == {"official": vqa_accuracy_evalai, "lmms-eval": vqa_accuracy_evalai, "default": vqa_accuracy}


def test_a_source_without_rules_for_a_task_says_so(tmp_path: Path):
    layouts_tuned.mmbench(tmp_path / "mmbench")
    layouts.vqav2(tmp_path / "vqav2")
    with pytest.raises(ValueError, match="--protocol openflamingo has no rules for task mmbench"):
        load("mmbench", tmp_path, "openflamingo")
    with pytest.raises(ValueError, match="--protocol lmms-eval asks vqav2 in chat form; leave --form plain out"):
        load("vqav2", tmp_path, "lmms-eval", form="plain")
    with pytest.raises(ValueError, match="leave --protocol out"):
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

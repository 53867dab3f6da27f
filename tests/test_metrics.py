"""Scores against the official scorers' recorded values, and what intervals promise."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1.eval.metrics.captions import bleu, cider, rouge_l
from mm1.eval.metrics.ptb_tokenizer import tokens
from mm1.eval.metrics.statistics import bootstrap, paired_difference
from mm1.eval.metrics.vqa import exact_match, normalize_answer, vqa_accuracy, vqa_accuracy_official

OFFICIAL = json.loads((Path(__file__).parent / "fixtures" / "official_scores.json").read_text())
CASES = OFFICIAL["captions"]
ANSWERS = [case["answer"] for case in CASES]
REFERENCES = [case["references"] for case in CASES]


def test_tokens_equal_the_official_ones():
    wrong = [
        (text, tokens(text), theirs)
        for case in CASES
        for text, theirs in zip(
            [case["answer"], *case["references"]],
            [case["answer_tokens"], *case["references_tokens"]],
            strict=True,
        )
        if tokens(text) != theirs
    ]
    assert wrong == []


def test_cider_equals_the_official_one():
    scores = cider(ANSWERS, REFERENCES)
    assert scores == pytest.approx([case["cider"] for case in CASES], abs=1e-9)


def test_bleu_equals_the_official_one():
    scores = bleu(ANSWERS, REFERENCES)
    assert scores.queries == pytest.approx([case["bleu"] for case in CASES], abs=1e-9)
    assert scores.corpus == pytest.approx(OFFICIAL["bleu_corpus"], abs=1e-9)


def test_rouge_equals_the_official_one():
    scores = rouge_l(ANSWERS, REFERENCES)
    assert scores == pytest.approx([case["rouge_l"] for case in CASES], abs=1e-9)


def test_vqa_accuracy_equals_the_official_one():
    answers, people = [case["answer"] for case in OFFICIAL["vqa"]], [case["people"] for case in OFFICIAL["vqa"]]
    scores = vqa_accuracy_official(answers, people)
    expected = [case["accuracy"] for case in OFFICIAL["vqa"]]
    assert scores == pytest.approx(expected, abs=1e-12)
    assert len(set(expected)) > 3, "the cases must tell partial credit from none and all"


def test_the_official_rule_normalises_only_where_people_disagree():
    people = [["yes"] * 10, ["yes"] * 9 + ["no"]]
    assert vqa_accuracy_official(["Yes.", "Yes."], people).tolist() == [0, 1]
    assert vqa_accuracy(["Yes.", "Yes"], people).tolist() == [1, 1]


def test_answers_are_normalised_as_officially():
    wrong = [
        (case["answer"], normalize_answer(case["answer"]), case["normalized"])
        for case in OFFICIAL["normalized"]
        if normalize_answer(case["answer"]) != case["normalized"]
    ]
    assert wrong == []


def test_exact_match_compares_normalised_answers():
    scores = exact_match(["The Circle.", "two", "no", "blue"], [["circle"], ["2"], ["yes"], ["red", "blue"]])
    assert scores.tolist() == [1, 1, 0, 1]


@given(st.permutations(range(12)))
@settings(max_examples=10)
def test_cider_of_a_query_does_not_depend_on_the_order(order: list[int]):
    straight = cider(ANSWERS[:12], REFERENCES[:12])
    mixed = cider([ANSWERS[n] for n in order], [REFERENCES[n] for n in order])
    assert mixed == pytest.approx(straight[order])


def test_a_reference_scores_more_than_any_other_caption():
    own = cider([texts[0] for texts in REFERENCES], REFERENCES)
    other = cider([texts[0] for texts in [*REFERENCES[1:], REFERENCES[0]]], REFERENCES)
    assert own.mean() > 3 * other.mean()
    assert cider(["a dog"], [["a dog"]]).tolist() == [0]  # one query: nothing is rare


def test_references_must_be_lists():
    with pytest.raises(ValueError, match="query 1 needs a list of at least one reference"):
        exact_match(["a", "b"], [["a"], "b"])
    with pytest.raises(ValueError, match="1 answers but references for 2 queries"):
        cider(["a"], [["a"], ["b"]])


def test_the_interval_holds_the_mean_95_times_in_100():
    draws = np.random.default_rng(0)
    held = 0
    for trial in range(300):
        interval = bootstrap(draws.exponential(2.0, size=80), seed=trial, samples=500)
        held += interval.low <= 2.0 <= interval.high
    assert 0.90 <= held / 300 <= 0.98


def test_an_interval_is_a_function_of_scores_and_seed():
    scores = np.random.default_rng(1).random(50)
    assert bootstrap(scores, seed=3) == bootstrap(scores, seed=3)
    assert bootstrap(scores, seed=3) != bootstrap(scores, seed=4)
    assert bootstrap(scores, seed=3).mean == pytest.approx(scores.mean())
    assert np.isnan(bootstrap(np.array([]), seed=0).mean)


def test_pairing_finds_what_separate_intervals_hide():
    draws = np.random.default_rng(2)
    hard = draws.normal(0, 10, size=200)  # some queries are much harder than others
    theirs, ours = hard, hard + 0.5 + draws.normal(0, 0.5, size=200)
    apart = [bootstrap(scores, seed=0) for scores in (ours, theirs)]
    assert apart[0].low < apart[1].high
    paired = paired_difference(ours, theirs, seed=0)
    assert paired.above_zero
    assert not paired.below_zero
    with pytest.raises(ValueError, match="the same queries"):
        paired_difference(ours, theirs[:5], seed=0)

"""Scores of random text against the official scorers' recorded values, and what is read out of an answer."""

import json
from pathlib import Path

import numpy as np
import pytest
import random_text
from hypothesis import given
from hypothesis import strategies as st

from mm1.eval.metrics import answer_parsing as parsing
from mm1.eval.metrics import short_answers as answers
from mm1.eval.metrics.captions import bleu, cider, rouge_l
from mm1.eval.metrics.math_answers import math_answer
from mm1.eval.metrics.vqa import exact_match, vqa_accuracy, vqa_accuracy_official

OFFICIAL = json.loads((Path(__file__).parent / "fixtures" / "random_scores.json").read_text())
SEED = OFFICIAL["seed"]
OPENFLAMINGO = json.loads((Path(__file__).parent / "fixtures" / "openflamingo.json").read_text())
"""What OpenFlamingo's evaluation gives the same answers, in tenths; `a` is 1."""


def columns(rows: list[tuple]) -> tuple[list, list]:
    ours, theirs = zip(*rows, strict=True)
    return list(ours), list(theirs)


def test_captions_score_as_officially():
    ours, references = columns(random_text.captions(1000, seed=SEED))
    scores = cider(ours, references)
    assert scores == pytest.approx(OFFICIAL["cider"], abs=1e-6)
    assert scores.mean() == pytest.approx(OFFICIAL["cider_corpus"], abs=1e-9)
    of_bleu = bleu(ours, references)
    assert of_bleu.queries == pytest.approx(OFFICIAL["bleu"], abs=1e-9)
    assert of_bleu.corpus == pytest.approx(OFFICIAL["bleu_corpus"][3], abs=1e-9)
    assert rouge_l(ours, references) == pytest.approx(OFFICIAL["rouge_l"], abs=1e-9)


def test_vqa_accuracy_is_exactly_the_official_one():
    ours, people = columns(random_text.people(1000, seed=SEED))
    assert vqa_accuracy_official(ours, people).tolist() == OFFICIAL["vqa"]
    openflamingo = [int(digit, 11) / 10 for digit in OPENFLAMINGO["vqa"]]
    assert vqa_accuracy(ours, people) == pytest.approx(openflamingo, abs=1e-9)
    assert openflamingo != pytest.approx(OFFICIAL["vqa"], abs=1e-9)
    assert {0.0, 0.3, 0.6, 0.9, 1.0} <= {round(score, 3) for score in OFFICIAL["vqa"]}


def test_anls_and_relaxed_accuracy_equal_the_official_ones():
    ours, right = columns(random_text.short(1000, seed=SEED))
    assert answers.anls(ours, right) == pytest.approx(OFFICIAL["anls"], abs=1e-9)
    assert 100 < sum(score == 0 for score in OFFICIAL["anls"]) < 900
    assert sum(0 < score < 1 for score in OFFICIAL["anls"]) > 100
    first = [texts[:1] for texts in right]
    assert answers.relaxed_accuracy(ours, first).tolist() == OFFICIAL["relaxed"]


def test_any_reference_may_be_met():
    assert answers.relaxed_accuracy(
        ["104", "0.5%", "0", "Red"], [["100"], ["0.005"], ["0"], ["x", "red"]]
    ).tolist() == [*(1, 1, 1, 1)]
    assert answers.relaxed_accuracy(["105.1", "0.1"], [["100"], ["0"]]).tolist() == [0, 0]


def test_pope_and_mme_equal_the_official_ones():
    written, labels = columns(random_text.yes_or_no(1000, seed=SEED))
    parsed = [parsing.yes_or_no(text) for text in written]
    totals = answers.pope_scores(parsed, labels)
    assert totals == pytest.approx(
        {
            name: 100 * OFFICIAL["pope"][key]
            for name, key in (("F1", "f1"), ("precision", "precision"), ("recall", "recall"), ("yes", "yes"))
        }
    )
    parsed = [parsing.mme_word(text) for text in written]
    scores = exact_match(parsed, [[label] for label in labels]).tolist()
    kinds = ["existence", "count", "code_reasoning", "OCR"]
    categories = [kinds[number // 2 % 4] for number in range(1000)]
    totals = answers.mme_scores(scores, categories, [f"q{number // 2}" for number in range(1000)])
    assert totals == pytest.approx(
        {"perception": OFFICIAL["mme"]["mme_perception_score"], "cognition": OFFICIAL["mme"]["mme_cognition_score"]}
    )


def test_pope_of_a_model_that_says_no_is_zero():
    assert answers.pope_scores(["no", "no"], ["yes", "no"]) == {"F1": 0, "precision": 0, "recall": 0, "yes": 0}


def test_math_answers_take_the_form_of_the_question():
    def read(written: str, kind: str = "float", decimals: int = 1, choices: tuple = (), unit: str = "") -> str:
        return math_answer(written, choices=choices, kind=kind, decimals=decimals, unit=unit)

    assert read("First 3 then 4. The answer is 1.26.") == "1.3"
    assert read("7 apples and 12 pears", "integer") == ""
    assert read("3 + 4 = 7.", "integer") == "7"
    assert read("I count 3, then 4, so there are 7", "integer") == "7"
    assert read("There are four.", "integer") == "4"
    assert read("It is 1,200 m", "integer") == "1200"
    assert read("$\\boxed{1.45}$", decimals=2) == "1.45"
    assert read("In the year 2014 the value was 6 units in 3 regions", "integer") == ""
    assert read("In the year 2014 the value was 6 units in 3 regions", "integer", unit="units") == "6"
    assert read("no idea", "integer") == ""
    assert read("The answer is (B)", "text", choices=("Yes", "No")) == "No"
    assert read("noo", "text", choices=("Yes", "No")) == "No"
    assert read("I would need to see more of it to tell", "text", choices=("Yes", "No")) == ""
    assert read("The years are [2007, 2008].", "list") == "[2007, 2008]"
    assert read("2\\sqrt{3}", "text", choices=("3", "2 \\sqrt { 3 }", "4")) == "2 \\sqrt { 3 }"


@pytest.mark.parametrize(
    ("written", "number"),
    [
        *(
            ("1,000", "1000"),
            ("$5", "5"),
            ("50%", "50"),
            ("3.0", "3"),
            ("\u22125", "-5"),
            ("minus 5", "-5"),
            ("1e3", "1000"),
        ),
        *(("4\n\nExplanation: 3 and 1 are there", "4"), ("The answer is 2 + 3 = 5", "5"), ("5^2 = 25", "25")),
        *(("The answer is 5 (2 + 3).", "5"), ("On 2014-05-06 it was 7", "7"), ("2 \u00d7 3 = 6 cm", "6")),
        *(("1/2", ""), ("\\frac{3}{4}", ""), ("2\\sqrt{3}", ""), ("2\u03c0", ""), ("2^5", ""), ("5 \u00d7 10^3", "")),
        *(("10:30", ""), ("2014-05-06", ""), ("5-6", ""), ("5 to 6", ""), ("The answer is between 5 and 6.", "")),
        *(("The answer is 5 or 6.", ""), ("1 000", ""), ("one hundred", ""), ("twenty-one", ""), ("twenty", "20")),
        *(("Step 3: 14", "14"), ("Question 1: 5", "5"), ("Figure 3: 7", "7"), ("The total in 2015: 300", "300")),
        *(("In 2010: 50", "50"), ("Therefore, 5: 3 red, 2 blue", ""), ("The answer is 4*5 = 20", "20")),
        *(("The area is 2*3", ""), ("The answer is 3 \\times 4 = 12", "12"), ("The answer is (3+4) = 7", "7")),
        *(
            ("1.2E+5", "120000"),
            ("1.\nThere are 3 apples", ""),
            ("The answer is **5**.", "5"),
            ("**Answer:** *5*", "5"),
        ),
        *(("5 * 10^3", ""), ("It is 12, that is 3 x 4", "12"), ("The answer is 6. 2 + 3 = 5", "6")),
        *(("5\u00b2", ""), ("3\u00bd", ""), ("1,5", ""), ("1.234,5", ""), ("1_000", ""), ("It is 1,00 or 7", "7")),
        *(("The answer is 5,000, as it says", "5000"), ("5,000,", "5000"), ("1,234,567, I think", "1234567")),
        *(("12,345", "12345"), ("1,2,3", ""), ("5 cm\u00b2", "5"), ("\u0661\u0662", "12"), ("\uff11\uff12", "12")),
        *(("The answer is 5 (2 + 4 = 6).", "5"), ("2x + 3 = 7", "7"), ("3 + (4 - 1) = 6", "6")),
    ],
)
def test_a_part_of_another_number_is_not_the_answer(written: str, number: str):
    assert math_answer(written, choices=(), kind="integer", decimals=0) == number


@pytest.mark.parametrize(
    ("written", "number"),
    [
        *(("1" * 10_000 + " x", ""), ("1+" * 5000, "1"), ("1+" * 5000 + "1 = 5001", "5001"), ("1/" * 5000 + "x", "")),
        *(("1," * 5000, ""), ("1-" * 5000, ""), ("3.14159" * 1500, "3"), ("1" + " " * 10_000 + "x", "1")),
    ],
    ids=lambda text: text[:9],
)
def test_a_long_text_is_read(written: str, number: str):
    assert math_answer(written, choices=(), kind="integer", decimals=0, unit="cm") == number


def test_thoughts_are_no_answer():
    assert parsing.after_thoughts("<think>A? No, C.</think>\n\nB") == "\n\nB"
    assert parsing.after_thoughts("It may be A.</think>B") == "B"
    assert parsing.after_thoughts("<think>The answer is A, or") == ""
    assert parsing.after_thoughts("B") == "B"
    assert parsing.after_thoughts("B <think>hm</think>") == "B "
    assert parsing.after_thoughts("A?</think>B <think>or A?</think>, a cat") == "B , a cat"
    assert parsing.after_thoughts("<think>A?</think><think>Or B") == ""


@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=12))
def test_edit_distance_is_a_distance(a: str, b: str, c: str):
    distance = answers.edit_distance
    assert distance(a, b) == distance(b, a)
    assert (distance(a, b) == 0) == (a == b)
    assert distance(a, c) <= distance(a, b) + distance(b, c)
    assert distance(a + c, b + c) <= distance(a, b) + 0
    assert abs(len(a) - len(b)) <= distance(a, b) <= max(len(a), len(b))


def test_scores_want_a_list_of_references():
    with pytest.raises(ValueError, match="query 0 needs a list"):
        answers.anls(["a"], ["a"])
    assert np.isfinite(answers.anls([""], [[""]])).all()

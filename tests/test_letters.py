"""The letters table: how often the letter in an answer is read, and that no other letter ever is."""

import json
import time
from collections import Counter
from pathlib import Path

import letter_forms as forms
import pytest
import random_text
from hypothesis import given
from hypothesis import strategies as st

from mm1.eval.metrics.letters import letter_of
from mm1.eval.metrics.mmmu import open_answer
from mm1.eval.metrics.short_answers import LETTERS

MMMU = json.loads((Path(__file__).parent / "fixtures" / "mmmu.json").read_text())
"""What MMMU's official parser makes of 1,000 answers; ? stands for the letter that it draws at random."""

REASONS = {
    "": 590,
    "it guesses, we read": 281,
    "it guesses, we read nothing": 67,
    "it takes the last of several": 23,
    "it takes the text of a choice, we the letter that the answer begins with": 21,
    "it takes the article A": 9,
    "it takes a letter that is denied": 9,
}
"""How many of the 1,000 answers are read otherwise than by MMMU's parser, and why."""


ALL_FORMS = (*forms.FORMS, *forms.LATER_FORMS, *forms.CJK_FORMS)


def written(form: str, number: int) -> str:
    """`form` with the letter, the text and two other texts of choice `number`."""
    others = [forms.CHOICES[(number + step) % 3] for step in (1, 2)] if number < 3 else forms.CHOICES[:2]
    names = {"L": LETTERS[number], "l": LETTERS[number].lower(), "T": forms.CHOICES[number]}
    return form.format(**names, O=others[0], P=others[1])


def table() -> list[tuple[str, str, str]]:
    """(text, the letter that it names, the letter that is read) of every form with every letter."""
    rows = [(written(form, number), LETTERS[number]) for form in ALL_FORMS for number in range(4)]
    return [(text, right, letter_of(text, forms.CHOICES)) for text, right in rows]


def test_letters_are_read_in_every_form_and_never_as_another():
    rows = table()
    assert len(rows) >= 83 * 4
    assert [row for row in rows if row[2] not in ("", row[1])] == []
    unread = [row for row in rows if not row[2]]
    assert len(unread) <= 0.05 * len(rows), unread


@pytest.mark.parametrize(("text", "choices", "letter"), [*forms.TEXTS, *forms.LATER_TEXTS, *forms.SUPPOSED_TEXTS])
def test_the_text_of_a_choice_names_it(text: str, choices: tuple[str, ...], letter: str):
    assert letter_of(text, choices) == letter


@pytest.mark.parametrize("text", [*forms.UNREAD, *forms.LATER_UNREAD, *forms.CJK_UNREAD, *forms.NAMES_UNREAD])
def test_a_text_that_names_no_choice_or_several_is_not_read(text: str):
    assert letter_of(text, forms.CHOICES) == ""


def test_the_last_conclusion_counts():
    assert letter_of("The answer is A. Wait, no. The answer is B.", forms.CHOICES) == "B"
    assert letter_of("B. The answer is not A.", forms.CHOICES) == "B"


def test_empty_and_equal_choices_keep_their_letters():
    assert letter_of("B", ["", "Two", "One"]) == "B"
    assert letter_of("two", ["", "Two", "One"]) == "B"
    assert letter_of("oak", ["oak", "oak", "ash"]) == "A"
    assert letter_of("C", ["oak", "oak", "ash"]) == "C"


@given(st.text(max_size=60), st.integers(2, 6))
def test_a_letter_is_a_choice_or_nothing(text: str, count: int):
    assert letter_of(text, [f"choice {number}" for number in range(count)]) in ("", *LETTERS[:count])


@given(st.text(alphabet="ABCDabcd .,:()*\n'is notanswer", max_size=60))
def test_reading_ends(text: str):
    assert letter_of(text, forms.CHOICES) in ("", *"ABCD")


@pytest.mark.parametrize("text", ["A ", "<answer>", "answer to ", "\u4e0d\u662fB", "\\boxed{", "if ", "not "])
def test_a_long_text_is_read_in_time_that_grows_as_its_length(text: str):
    def seconds(length: int) -> float:
        long, start = (text * length)[:length] + "x", time.process_time()
        letter_of(long, forms.CHOICES)
        return time.process_time() - start

    seconds(100)  # compiles the patterns
    assert seconds(40_000) < 10 * max(seconds(10_000), 0.02)  # a quadratic rule takes 16 times as long


def difference(text: str, official: str, ours: str) -> str:
    """Why we don't read what MMMU's parser reads; "" where we do."""
    if official == ours:
        return ""
    if official == "?":
        return "it guesses, we read" if ours else "it guesses, we read nothing"
    if ours:
        return "it takes the text of a choice, we the letter that the answer begins with" if text[0] == ours else "?"
    if text.startswith("A ") and official == "A":
        return "it takes the article A"
    if "not" in text or "wrong" in text:
        return "it takes a letter that is denied"
    return "it takes the last of several" if " or " in text or " and " in text else "?"


def test_mmmu_answers_are_read_as_officially_but_for_named_reasons():
    rows = random_text.choice_answers(1000, seed=MMMU["seed"])
    letters = [letter_of(text, choices) for text, choices in rows]
    read = zip(rows, MMMU["letters"], letters, strict=True)
    reasons = Counter(difference(text, official, ours) for (text, _), official, ours in read)
    assert reasons == REASONS


def test_open_answers_are_right_where_the_official_code_finds_them_right():
    answers, right = zip(*random_text.open_answers(1000, seed=MMMU["seed"]), strict=True)
    assert "".join(str(int(score)) for score in open_answer(answers, right)) == MMMU["open"]
    assert open_answer(["50%", "4, 8, 30", "B", "B or C"], [["50%"], ["8"], ["B"], ["B"]]).tolist() == [1, 0, 1, 0]

"""The letters table: how often the letter in an answer is read, and that no other letter ever is."""

import letter_forms as forms
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm1.eval.metrics.letters import letter_of
from mm1.eval.metrics.short_answers import LETTERS


def written(form: str, number: int) -> str:
    """`form` with the letter, the text and two other texts of choice `number`."""
    others = [forms.CHOICES[(number + step) % 3] for step in (1, 2)] if number < 3 else forms.CHOICES[:2]
    names = {"L": LETTERS[number], "l": LETTERS[number].lower(), "T": forms.CHOICES[number]}
    return form.format(**names, O=others[0], P=others[1])


def table() -> list[tuple[str, str, str]]:
    """(text, the letter that it names, the letter that is read) of every form with every letter."""
    rows = [(written(form, number), LETTERS[number]) for form in forms.FORMS for number in range(4)]
    return [(text, right, letter_of(text, forms.CHOICES)) for text, right in rows]


def test_letters_are_read_in_every_form_and_never_as_another():
    rows = table()
    assert len(rows) >= 83 * 4
    assert [row for row in rows if row[2] not in ("", row[1])] == []
    unread = [row for row in rows if not row[2]]
    assert len(unread) <= 0.05 * len(rows), unread


@pytest.mark.parametrize(("text", "choices", "letter"), forms.TEXTS)
def test_the_text_of_a_choice_names_it(text: str, choices: tuple[str, ...], letter: str):
    assert letter_of(text, choices) == letter


@pytest.mark.parametrize("text", forms.UNREAD)
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

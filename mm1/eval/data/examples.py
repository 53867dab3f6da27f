"""Rows of a published data set as examples: which columns hold what, and the checks of their values."""

import ast
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mm1.eval.data.rows import OddRow, Row, Rows, picture
from mm1.eval.fewshot import Example
from mm1.eval.metrics.short_answers import LETTERS

Column = str | Callable[[Row], Any]
"""A column's name, or a function of the row. `#` is the row's position, for data sets without ids."""


NO_CHOICE = "an answer that is no choice"


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a data set that examples are read from.

    question     empty if there are no questions
    answers      right answers; with `choices` a letter, or the number of a choice, counted from 0
    choices      of multiple-choice questions; an empty one is not listed, and the others keep their letters
    some_open    whether questions without choices belong to the data set, and are asked as open ones
    more_images  images after the first
    reasoning    explanations of the answers
    metadata     columns that totals and judges need
    answer_set   the only answers there are, such as yes and no
    picture      names the picture of a row, where several rows can ask about one
    """

    id: Column = "question_id"
    image: Column = "image"
    question: Column = "question"
    answers: Column = "answers"
    choices: Column | None = None
    some_open: bool = False
    more_images: Callable[[Row], Sequence[Any]] = lambda row: ()
    reasoning: Column | None = None
    metadata: tuple[str, ...] = ()
    answer_set: tuple[str, ...] = ()
    picture: str = ""


@dataclass(frozen=True, slots=True)
class ExampleReader:
    """Examples from the rows of one `split`. `layout` names the data set whose layout the columns follow.

    `hidden`: the answers of the split are not public, and its examples have none.
    """

    rows: Rows
    columns: Columns
    layout: str
    split: str
    hidden: bool = False

    def light_rows(self) -> Iterator[tuple[int, Row]]:
        """The position of each row, and the row without its images."""
        return ((position, {"#": position, **row}) for position, row in enumerate(self.rows.light()))

    def id(self, row: Row) -> str:
        return self.text(row, self.columns.id)

    def picture_name(self, row: Row) -> str | None:
        """The name of the row's picture; None if the rows don't name theirs."""
        name = row.get(self.columns.picture)
        return None if name is None else str(name)

    def text(self, row: Row, column: Column) -> str:
        return str(self._value(row, column))

    def answers(self, row: Row) -> tuple[str, ...]:
        return self._answers(row, self._choices(row))

    def examples(self, positions: Sequence[int]) -> list[Example | OddRow]:
        """The examples at `positions`; a row that can't be scored is its error."""
        pairs = zip(positions, self.rows.take(positions), strict=True)
        return [self._try_example({"#": position, **row}) for position, row in pairs]

    def _where(self, row: Row) -> str:
        return f"{self.rows.name}, row {row['#']}"

    def _try_example(self, row: Row) -> Example | OddRow:
        try:
            return self._example(row)
        except OddRow as odd:
            return odd

    def _example(self, row: Row) -> Example:
        columns, where = self.columns, self._where(row)
        question = self._value(row, columns.question) if columns.question else ""
        if not isinstance(question, str) or (columns.question and not question.strip()):
            raise OddRow(f"{where} has no question: found {question!r}", name="no question")
        choices = self._choices(row)
        more_images = tuple(picture(value, where=where) for value in columns.more_images(row))
        marks = [number for number in range(1, 10) if f"<image {number}>" in question + "".join(choices)]
        if marks and max(marks) > 1 + len(more_images):
            shown = f"the question shows <image {max(marks)}> of {1 + len(more_images)} pictures"
            raise OddRow(f"{where}: {shown}", name="a picture that is not given")
        return Example(
            id=self.id(row),
            image=picture(self._value(row, columns.image), where=where),
            question=question.strip(),
            answers=() if self.hidden else self._answers(row, choices),
            more_images=more_images,
            choices=choices,
            reasoning=str(self._value(row, columns.reasoning) or "") if columns.reasoning else "",
            metadata={name: self.text(row, name) for name in columns.metadata},
            odd=_odd_choices(choices),
        )

    def _choices(self, row: Row) -> tuple[str, ...]:
        if self.columns.choices is None:
            return ()
        value, fault = self._value(row, self.columns.choices), None
        if isinstance(value, str):  # MMMU writes a list as text
            try:
                value = ast.literal_eval(value.strip())
            except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
                fault = error
        value = _by_letter(value) if isinstance(value, dict) else value
        if fault is not None or (value and not isinstance(value, list | tuple)):
            message = f"{self._where(row)}: the choices are no list: {value!r}"
            raise OddRow(message, name="choices that are no list") from fault
        if not value and not self.columns.some_open:
            raise OddRow(f"{self._where(row)} has no choices: found {value!r}", name="no choices")
        return tuple("" if choice is None else str(choice).strip() for choice in value or ())

    def _answers(self, row: Row, choices: Sequence[str]) -> tuple[str, ...]:
        value, where = self._value(row, self.columns.answers), self._where(row)
        if choices:
            return (_letter(value, choices, where=where),)
        texts = list(value) if isinstance(value, list | tuple) else [value]
        texts = [_written(text) if _is_number(text) else text for text in texts]
        if not all(isinstance(text, str) for text in texts) or not any(text.strip() for text in texts):
            raise OddRow(f"{where} needs at least one answer, each a text; found {value!r}", name="no answer")
        if answer_set := self.columns.answer_set:
            texts = [text.strip().lower() for text in texts]
            if not set(texts) <= set(answer_set):
                message = f"{where}: the answer must be {' or '.join(answer_set)}; found {value!r}"
                raise OddRow(message, name=NO_CHOICE)
        counts = Counter(texts)
        return tuple(sorted(texts, key=lambda text: -counts[text]))  # the commonest first: shots show it

    def _value(self, row: Row, column: Column) -> Any:
        try:
            return row[column] if isinstance(column, str) else column(row)
        except KeyError as error:
            columns = ", ".join(name for name in row if name != "#")
            message = f"{self._where(row)} has no column {error}; found {columns}"
            raise OddRow(message, name="a missing column") from error
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            if isinstance(error, OddRow):
                raise
            message = f"{self._where(row)} is not laid out as in {self.layout}: {error}"
            raise OddRow(message, name="another layout") from error


def _by_letter(choices: dict[str, Any]) -> list[Any] | dict[str, Any]:
    """The choices of {"A": text, "B": text, ...}, or of {"label": letters, "text": texts}; others as they are."""
    if isinstance(texts := choices.get("text"), list):
        return texts
    letters = [letter for letter in LETTERS if letter in choices]
    if not letters or len(letters) != len(choices):
        return choices
    texts = [choices.get(letter) for letter in LETTERS[: LETTERS.index(letters[-1]) + 1]]
    while texts and texts[-1] is None:  # parquet gives each row the letters of all
        texts.pop()
    return texts


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _written(number: float) -> str:
    """A number as text: 3.0 as "3", since a column of whole numbers with an empty cell holds floats."""
    return str(int(number)) if isinstance(number, float) and number.is_integer() else str(number)


def _odd_choices(choices: Sequence[str]) -> tuple[str, ...]:
    """What is odd about choices that can be scored: the right letter is right, whatever its text."""
    filled = [choice for choice in choices if choice]
    names = {
        "equal choices": len(set(filled)) < len(filled),
        "empty choice": len(filled) < len(choices),
        "one choice": len(choices) == 1,
    }
    return tuple(name for name, is_so in names.items() if is_so)


def _letter(value: Any, choices: Sequence[str], *, where: str) -> str:
    """The letter of the right choice; `value` is that letter, or the number of the choice."""
    letters = LETTERS[: len(choices)]
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of numbers with an empty cell holds floats
    if isinstance(value, int) or (isinstance(value, str) and value.strip().isdecimal()):
        if not 0 <= int(value) < len(choices):
            raise OddRow(f"{where}: answer {value} of {len(choices)} choices, counted from 0", name=NO_CHOICE)
        return letters[int(value)]
    if isinstance(value, str) and len(value.strip()) == 1 and value.strip().upper() in letters:
        return value.strip().upper()
    raise OddRow(f"{where}: the answer must be one of {', '.join(letters)}; found {value!r}", name=NO_CHOICE)


def people(row: Row) -> list[str]:
    """The answers of several people: texts, or dicts that hold one each."""
    return [answer["answer"] if isinstance(answer, dict) else answer for answer in row["answers"]]


def lettered(row: Row) -> list[str]:
    """The choices in columns A, B, C, ..., up to the last one that is filled; an empty one before it is ""."""
    texts = ["" if row.get(letter) is None else str(row[letter]).strip() for letter in LETTERS]
    texts = ["" if text == "nan" else text for text in texts]
    filled = [number for number, text in enumerate(texts, start=1) if text]
    return texts[: filled[-1]] if filled else []

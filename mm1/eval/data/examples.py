"""Rows of a published data set as examples: which columns hold what, and the checks of their values."""

import ast
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mm1.eval.data.rows import Row, Rows, TaskError, picture
from mm1.eval.fewshot import Example
from mm1.eval.metrics.short_answers import LETTERS

Column = str | Callable[[Row], Any]
"""A column's name, or a function of the row. `#` is the row's position, for data sets without ids."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a data set that examples are read from.

    question     empty if there are no questions
    answers      right answers; with `choices` a letter, or the number of a choice, counted from 0
    choices      of multiple-choice questions
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
    more_images: Callable[[Row], Sequence[Any]] = lambda row: ()
    reasoning: Column | None = None
    metadata: tuple[str, ...] = ()
    answer_set: tuple[str, ...] = ()
    picture: str = ""


@dataclass(frozen=True, slots=True)
class ExampleReader:
    """Examples from the rows of one split. `layout` names the data set whose layout the columns follow."""

    rows: Rows
    columns: Columns
    layout: str

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

    def first_answer(self, row: Row) -> str:
        return self._answers(row, self._choices(row))[0]

    def examples(self, positions: Sequence[int]) -> list[Example]:
        """The examples at `positions`.

        Raises:
            TaskError: a row that can't be scored.
        """
        pairs = zip(positions, self.rows.take(positions), strict=True)
        return [self._example({"#": position, **row}) for position, row in pairs]

    def _where(self, row: Row) -> str:
        return f"{self.rows.name}, row {row['#']}"

    def _example(self, row: Row) -> Example:
        columns, where = self.columns, self._where(row)
        question = self._value(row, columns.question) if columns.question else ""
        if not isinstance(question, str) or (columns.question and not question.strip()):
            raise TaskError(f"{where} has no question: found {question!r}")
        choices = self._choices(row)
        more_images = tuple(picture(value, where=where) for value in columns.more_images(row))
        marks = [number for number in range(1, 10) if f"<image {number}>" in question + "".join(choices)]
        if marks and max(marks) > 1 + len(more_images):
            raise TaskError(f"{where}: the question shows <image {max(marks)}> of {1 + len(more_images)} pictures")
        return Example(
            id=self.id(row),
            image=picture(self._value(row, columns.image), where=where),
            question=question.strip(),
            answers=self._answers(row, choices),
            more_images=more_images,
            choices=choices,
            reasoning=str(self._value(row, columns.reasoning) or "") if columns.reasoning else "",
            metadata={name: self.text(row, name) for name in columns.metadata},
        )

    def _choices(self, row: Row) -> tuple[str, ...]:
        if self.columns.choices is None:
            return ()
        value = self._value(row, self.columns.choices)
        if isinstance(value, str):  # MMMU writes a list as text
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError) as error:
                raise TaskError(f"{self._where(row)}: the choices are no list: {value!r}") from error
        choices = tuple(str(choice).strip() for choice in value or ())
        if len(choices) == 1 or len(set(choices)) != len(choices) or not all(choices):
            raise TaskError(f"{self._where(row)}: choices must be two or more different texts; found {list(choices)}")
        return choices

    def _answers(self, row: Row, choices: Sequence[str]) -> tuple[str, ...]:
        value, where = self._value(row, self.columns.answers), self._where(row)
        if choices:
            return (_letter(value, choices, where=where),)
        texts = list(value) if isinstance(value, list | tuple) else [value]
        if not all(isinstance(text, str) for text in texts) or not any(text.strip() for text in texts):
            raise TaskError(f"{where} needs at least one answer, each a text; found {value!r}")
        if answer_set := self.columns.answer_set:
            texts = [text.strip().lower() for text in texts]
            if not set(texts) <= set(answer_set):
                raise TaskError(f"{where}: the answer must be {' or '.join(answer_set)}; found {value!r}")
        counts = Counter(texts)
        return tuple(sorted(texts, key=lambda text: -counts[text]))  # the commonest first: shots show it

    def _value(self, row: Row, column: Column) -> Any:
        try:
            return row[column] if isinstance(column, str) else column(row)
        except KeyError as error:
            columns = ", ".join(name for name in row if name != "#")
            raise TaskError(f"{self._where(row)} has no column {error}; found {columns}") from error
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            if isinstance(error, TaskError):
                raise
            raise TaskError(f"{self._where(row)} is not laid out as in {self.layout}: {error}") from error


def _letter(value: Any, choices: Sequence[str], *, where: str) -> str:
    """The letter of the right choice; `value` is that letter, or the number of the choice."""
    letters = LETTERS[: len(choices)]
    if isinstance(value, int) or (isinstance(value, str) and value.strip().isdecimal()):
        if not 0 <= int(value) < len(choices):
            raise TaskError(f"{where}: answer {value} of {len(choices)} choices, counted from 0")
        return letters[int(value)]
    if isinstance(value, str) and len(value.strip()) == 1 and value.strip().upper() in letters:
        return value.strip().upper()
    raise TaskError(f"{where}: the answer must be one of {', '.join(letters)}; found {value!r}")


def people(row: Row) -> list[str]:
    """The answers of several people: texts, or dicts that hold one each."""
    return [answer["answer"] if isinstance(answer, dict) else answer for answer in row["answers"]]


def lettered(row: Row) -> list[str]:
    """The choices in columns A, B, C, ..., as many as are filled."""
    texts = [str(row[letter]) for letter in LETTERS[:8] if row.get(letter) is not None]
    return [text for text in texts if text and text != "nan"]

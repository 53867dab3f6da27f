"""MathVista, testmini. Rules extract the answers instead of GPT-4, see `math_answer`."""

from mm1.eval.data.examples import Columns
from mm1.eval.data.original_releases import named_rows
from mm1.eval.data.published import Published, Source
from mm1.eval.data.rows import Row
from mm1.eval.fewshot import Example, Scoring
from mm1.eval.metrics.answer_parsing import math_answer
from mm1.eval.metrics.short_answers import LETTERS, same_text

NOT_THERE = -1
"""The number of a right answer that is no choice."""


def right_answer(row: Row) -> str | int:
    """The number of the right choice, or the answer as text."""
    choices = row["choices"]
    if not choices:
        return row["answer"]
    return choices.index(row["answer"]) if row["answer"] in choices else NOT_THERE


def parse(written: str, query: Example) -> str:
    """The letter of the nearest choice, or the number in the form that the question demands."""
    decimals = int(float(query.metadata["precision"])) if query.metadata["answer_type"] == "float" else 0
    answer = math_answer(written, choices=query.choices, kind=query.metadata["answer_type"], decimals=decimals)
    return LETTERS[query.choices.index(answer)] if query.choices else answer


task = Published(
    name="mathvista",
    kind="choice",
    source=Source(
        paper="https://arxiv.org/abs/2310.02255",
        hub="AI4Math/MathVista",
        queries=("testmini",),
        original=named_rows("{split}.json", name="pid", image="{image}", folders=("",)),
    ),
    columns=Columns(
        id="pid",
        image=lambda row: row.get("decoded_image") or row["image"],
        answers=right_answer,
        choices=lambda row: row["choices"] or (),
        metadata=("answer_type", "precision"),
    ),
    scoring=Scoring(same_text, parse=parse),
)

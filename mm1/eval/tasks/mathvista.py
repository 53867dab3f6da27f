"""MathVista, testmini. GPT-4's cutting out of answers is replaced by rules, see `math_answer`."""

from mm1.eval.data.original_releases import named_rows
from mm1.eval.data.published import Published
from mm1.eval.data.rows import Row
from mm1.eval.fewshot import Example
from mm1.eval.metrics.answer_parsing import math_answer
from mm1.eval.metrics.short_answers import LETTERS, same_text


def right(row: Row) -> str | int:
    """The place of the right choice, or the answer as text."""
    return row["choices"].index(row["answer"]) if row["choices"] else row["answer"]


def parse(written: str, query: Example) -> str:
    """The letter of the choice that is nearest, or the number in the form that is asked for."""
    decimals = int(float(query.metadata["precision"])) if query.metadata["answer_type"] == "float" else 0
    found = math_answer(written, choices=query.choices, kind=query.metadata["answer_type"], decimals=decimals)
    return LETTERS[query.choices.index(found)] if query.choices else found


task = Published(
    name="mathvista",
    source="https://arxiv.org/abs/2310.02255",
    hub="AI4Math/MathVista",
    queries=("testmini",),
    kind="choice",
    metric=same_text,
    id="pid",
    image=lambda row: row.get("decoded_image") or row["image"],
    choices=lambda row: row["choices"] or (),
    answers=right,
    metadata=("answer_type", "precision"),
    parse=parse,
    original=named_rows("{split}.json", name="pid", image="{image}", folders=("",)),
)

"""MathVista, testmini. GPT-4's cutting out of answers is replaced by rules, see `math_answer`."""

from mm1.eval.data.original_releases import named_rows
from mm1.eval.data.published import Published
from mm1.eval.data.rows import Row
from mm1.eval.fewshot import Example
from mm1.eval.metrics.short_answers import LETTERS, math_answer, same_text


def right(row: Row) -> str | int:
    """The place of the right choice, or the answer as text."""
    return row["choices"].index(row["answer"]) if row["choices"] else row["answer"]


def read(written: str, query: Example) -> str:
    """The letter of the choice that is nearest, or the number in the form that is asked for."""
    decimals = int(float(query.about["precision"])) if query.about["answer_type"] == "float" else 0
    found = math_answer(written, choices=query.choices, kind=query.about["answer_type"], decimals=decimals)
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
    about=("answer_type", "precision"),
    read=read,
    original=named_rows("{split}.json", name="pid", image="{image}", folders=("",)),
)

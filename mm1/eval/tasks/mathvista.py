"""MathVista, testmini. With `--judge` another model extracts the answers, as GPT-4 officially; else rules do.

Fine-tuned models are asked with the official prompt: a hint at the form of the answer, the question with its unit, the
choices (https://github.com/lupantech/MathVista/blob/main/evaluation/build_query.py).

Its rows have no explanations, which chain-of-thought shots need: they are those of a column `solution` that you add.
"""

import re

from mm1.eval.data.examples import Columns
from mm1.eval.data.original_releases import named_rows
from mm1.eval.data.published import Published, Source
from mm1.eval.data.rows import Row
from mm1.eval.fewshot import Example, ExtractRule, Scoring
from mm1.eval.metrics.math_answers import math_answer
from mm1.eval.metrics.short_answers import LETTERS, same_text

NOT_THERE = -1
"""The number of a right answer that is no choice."""

_INTEGER = "requiring an integer answer and provide the final value, e.g., 1, 2, 3"
_FLOAT = "requiring a floating-point number with {} and provide the final value, e.g., {}"
_LIST = "requiring a Python list as an answer and provide the final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4]"
HINTS = {
    "text": "and provide the correct option letter, e.g., A, B, C, D",
    "integer": _INTEGER,
    "float 1": _FLOAT.format("one decimal place", "1.2, 1.3, 1.4"),
    "float 2": _FLOAT.format("two decimal places", "1.23, 1.34, 1.45"),
    "list": _LIST,
}
"""The official hints, by the type of the answer and its decimals."""


def question_with_unit(row: Row) -> str:
    """The question with its unit, if it has one."""
    return f"{row['question']} (Unit: {row['unit']})" if row.get("unit") else row["question"]


def right_answer(row: Row) -> str | int:
    """The number of the right choice, or the answer as text."""
    choices = row["choices"]
    if not choices:
        return row["answer"]
    return choices.index(row["answer"]) if row["answer"] in choices else NOT_THERE


def ask(example: Example) -> str:
    """The official prompt."""
    kind = example.metadata["answer_type"]
    hint = HINTS.get(kind) or HINTS.get(f"{kind} {decimals_of(example)}") or HINTS["float 2"]
    choices = [f"({letter}) {choice}" for letter, choice in zip(LETTERS, example.choices, strict=False)]
    listed = ["Choices:", *choices] if choices else []
    return "\n".join(
        [f"Hint: Please answer the question {hint}, at the end.", f"Question: {example.question}", *listed]
    )


def decimals_of(example: Example) -> int:
    """The decimals that the answer has; 0 where the row doesn't say."""
    decimals = re.fullmatch(r"(\d+)(?:\.0*)?", example.metadata["precision"])
    return int(decimals[1]) if decimals and example.metadata["answer_type"] == "float" else 0


def parse(written: str, query: Example) -> str:
    """The letter of the choice, the first of equal ones; or the number or list in the form of the question."""
    unit = "" if query.metadata["unit"] == "None" else query.metadata["unit"]
    kind, decimals = query.metadata["answer_type"], decimals_of(query)
    answer = math_answer(written, choices=query.choices, kind=kind, decimals=decimals, unit=unit)
    return LETTERS[query.choices.index(answer)] if query.choices and answer else answer


def ask_extraction(query: Example, written: str) -> str:
    """The question to the model that extracts an answer: ours, in place of the official examples."""
    return (
        f"{ask(query)}\n\nModel response: {written}\n\nWrite only the final answer that the response gives, in the "
        "form of the hint: the letter of the choice, the number without its unit, or the list. "
        "Write none if the response gives no answer."
    )


def parse_extraction(reply: str) -> str:
    """The first line of the reply, without a label before the answer."""
    unlabelled = re.sub(r"(?i)^\W*(?:extracted|final)?\s*answer\s*:", "", reply.strip()).strip()
    line = unlabelled.partition("\n")[0].strip(" *`")
    if not line or len(line) > 100:
        raise ValueError(f"one short line with the answer is expected; found {reply[:80]!r}")
    return "" if line.lower().rstrip(".") == "none" else line


def is_unclear(query: Example, written: str) -> bool:
    """Whether a text is no answer by itself: neither a choice nor a number. The official code asks nobody then."""
    text = written.strip()
    if query.choices:
        return text not in query.choices
    return re.fullmatch(r"-?\d+(?:\.\d+)?", text) is None


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
        question=question_with_unit,
        answers=right_answer,
        choices=lambda row: row["choices"] or (),
        some_open=True,
        reasoning=lambda row: row.get("solution"),
        metadata=("answer_type", "precision", "unit"),
    ),
    scoring=Scoring(same_text, parse=parse, extract=ExtractRule(ask_extraction, parse_extraction, is_unclear)),
    ask=ask,
    max_tokens=512,
)

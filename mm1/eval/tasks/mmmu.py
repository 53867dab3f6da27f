"""MMMU, validation: college questions with up to seven images. An answer without a letter is wrong, not guessed."""

import ast

from mm1.eval.data.examples import Columns
from mm1.eval.data.published import Published, Source
from mm1.eval.data.rows import Row
from mm1.eval.fewshot import Scoring
from mm1.eval.metrics.mmmu import open_answer


def further_images(row: Row) -> list:
    """The second image and those after it."""
    return [row[name] for name in (f"image_{number}" for number in range(2, 8)) if row.get(name) is not None]


def right_answer(row: Row) -> list[str] | str:
    """One answer, or the list of answers that some open questions write as text. "[2, 5)" is one answer."""
    try:
        answers = ast.literal_eval(row["answer"])
    except (ValueError, SyntaxError):
        return row["answer"]
    return [str(answer) for answer in answers] if isinstance(answers, list) else row["answer"]


task = Published(
    name="mmmu",
    kind="choice",
    source=Source(
        paper="https://arxiv.org/abs/2311.16502",
        hub="lmms-lab-encoder/MMMU",
        queries=("validation",),
        shots=("dev",),
    ),
    columns=Columns(
        id="id",
        image="image_1",
        answers=right_answer,
        choices="options",
        some_open=True,
        more_images=further_images,
        reasoning="explanation",
    ),
    scoring=Scoring(open_answer),
)

"""MMMU, validation: college questions with up to seven pictures. Where no letter can be read, none is guessed."""

from mm1.eval.data.published import Published
from mm1.eval.data.rows import Row
from mm1.eval.metrics.short_answers import open_answer


def further_images(row: Row) -> list:
    """The second picture and those after it."""
    return [row[name] for name in (f"image_{number}" for number in range(2, 8)) if row.get(name) is not None]


def right(row: Row) -> list[str] | str:
    """One answer, or the list that open questions sometimes write as text."""
    return row["answer"][1:-1].replace("'", "").split(", ") if row["answer"].startswith("[") else row["answer"]


task = Published(
    name="mmmu",
    source="https://arxiv.org/abs/2311.16502",
    hub="lmms-lab/MMMU",
    queries=("validation",),
    shots=("dev",),
    kind="choice",
    metric=open_answer,
    id="id",
    image="image_1",
    more_images=further_images,
    choices="options",
    answers=right,
    reasoning="explanation",
)

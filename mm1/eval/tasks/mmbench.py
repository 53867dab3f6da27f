"""MMBench, English dev, each question asked once (the paper's CircularEval asks it with the choices in all orders)."""

from mm1.eval.data.original_releases import tsv
from mm1.eval.data.published import Published, lettered
from mm1.eval.data.rows import Row
from mm1.eval.metrics.short_answers import same_word


def hinted(row: Row) -> str:
    """The question after its hint, where there is one."""
    hint = row.get("hint")
    return row["question"] if not hint or hint == "nan" else f"{hint}\n{row['question']}"


task = Published(
    name="mmbench",
    source="https://arxiv.org/abs/2307.06281",
    hub="lmms-lab/MMBench",
    folder="en",
    queries=("dev",),
    kind="choice",
    metric=same_word,
    id="index",
    question=hinted,
    choices=lettered,
    answers="answer",
    original=tsv("[mM][mM][bB]*_{split}*.tsv"),
)

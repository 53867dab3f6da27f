"""ScienceQA, the test questions with a picture (SQA-I); its solutions serve as chain-of-thought shots."""

from mm1.eval.data.original_releases import scienceqa_files
from mm1.eval.data.published import Published
from mm1.eval.data.rows import Row
from mm1.eval.metrics.short_answers import same_word


def hinted(row: Row) -> str:
    """The question after its context, where there is one."""
    return f"Context: {row['hint']}\n{row['question']}" if row["hint"] else row["question"]


task = Published(
    name="scienceqa",
    source="https://arxiv.org/abs/2209.09513",
    hub="lmms-lab/ScienceQA",
    folder="ScienceQA-IMG",
    queries=("test",),
    shots=("train",),
    kind="choice",
    metric=same_word,
    id="#",
    question=hinted,
    choices="choices",
    answers="answer",
    reasoning="solution",
    original=scienceqa_files,
)

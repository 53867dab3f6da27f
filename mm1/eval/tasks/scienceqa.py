"""ScienceQA, the test questions with an image (SQA-I); its solutions serve as chain-of-thought shots."""

from mm1.eval.data.examples import Columns
from mm1.eval.data.original_releases import scienceqa_files
from mm1.eval.data.published import Published, Source
from mm1.eval.data.rows import Row
from mm1.eval.fewshot import Scoring
from mm1.eval.metrics.short_answers import same_word


def question_with_context(row: Row) -> str:
    """The question, after its context if there is one."""
    return f"Context: {row['hint']}\n{row['question']}" if row["hint"] else row["question"]


task = Published(
    name="scienceqa",
    kind="choice",
    source=Source(
        paper="https://arxiv.org/abs/2209.09513",
        hub="lmms-lab-encoder/ScienceQA",
        queries=("test",),
        shots=("train",),
        folder="ScienceQA-IMG",
        original=scienceqa_files,
    ),
    columns=Columns(id="#", question=question_with_context, answers="answer", choices="choices", reasoning="solution"),
    scoring=Scoring(same_word),
)

"""RealWorldQA: questions of drivers and pedestrians; the choices are part of the question's text."""

import re

from mm1.eval.data.examples import Columns
from mm1.eval.data.published import Published, Source
from mm1.eval.data.rows import Row
from mm1.eval.fewshot import Scoring
from mm1.eval.metrics.short_answers import same_word

CHOICE = re.compile(r"^([A-H])\. *(.+)$", re.MULTILINE)


def question(row: Row) -> str:
    """The question without its choices and the sentence after them, which asks for a letter or a word."""
    text = CHOICE.split(row["question"])[0] if CHOICE.search(row["question"]) else row["question"]
    return text.partition("\nPlease answer")[0]


task = Published(
    name="realworldqa",
    kind="choice",
    source=Source(
        paper="https://x.ai/blog/grok-1.5v",
        hub="lmms-lab-encoder/RealWorldQA",
        queries=("test",),
    ),
    columns=Columns(
        id="#",
        question=question,
        answers="answer",
        choices=lambda row: [text for _, text in CHOICE.findall(row["question"])],
        some_open=True,
    ),
    scoring=Scoring(same_word),
)

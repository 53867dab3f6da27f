"""RealWorldQA: what a driver or a walker would ask; choices stand in the question's text."""

import re

from mm1.eval.data.published import Published
from mm1.eval.data.rows import Row
from mm1.eval.metrics.short_answers import same_word

CHOICE = re.compile(r"^([A-H])\. *(.+)$", re.MULTILINE)


def asked(row: Row) -> str:
    """The question without its choices, and without the sentence after them that asks for a letter or a word."""
    text = CHOICE.split(row["question"])[0] if CHOICE.search(row["question"]) else row["question"]
    return text.partition("\nPlease answer")[0]


task = Published(
    name="realworldqa",
    source="https://x.ai/blog/grok-1.5v",
    hub="lmms-lab/RealWorldQA",
    queries=("test",),
    kind="choice",
    metric=same_word,
    id="#",
    question=asked,
    choices=lambda row: [text for _, text in CHOICE.findall(row["question"])],
    answers="answer",
)

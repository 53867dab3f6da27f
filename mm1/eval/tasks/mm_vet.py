"""MM-Vet: open questions that need several abilities; a judge gives 0 to 1.

The question to the judge is ours, so scores compare only with others of this file and the same judge.
"""

import re

from mm1.eval.data.original_releases import named_rows
from mm1.eval.data.published import Published
from mm1.eval.fewshot import Example, JudgeRule
from mm1.eval.metrics.short_answers import same_word


def ask_judge(query: Example, answer: str) -> str:
    """The right answer beside the given one; the judge says how much of it is right."""
    return (
        f"Question: {query.question}\nRight answer: {query.answers[0]}\nGiven answer: {answer}\n\n"
        "In the right answer <AND> joins parts that are all needed, <OR> parts of which one is enough. "
        "How right is the given answer? Write only a number from 0.0 (all wrong) to 1.0 (all right), one decimal."
    )


def points(reply: str) -> float:
    """The number at the beginning of the reply."""
    found = re.match(r"\s*(\d(?:\.\d+)?)", reply)
    if found is None or float(found[1]) > 1:
        raise ValueError(f"a number from 0 to 1 is expected; found {reply[:80]!r}")
    return float(found[1])


task = Published(
    name="mm_vet",
    source="https://arxiv.org/abs/2308.02490",
    hub="lmms-lab/MMVet",
    queries=("test",),
    kind="free",
    metric=same_word,
    answers="answer",
    judge=JudgeRule(ask_judge, points),
    original=named_rows("mm-vet.json", name="question_id", image="{imagename}"),
)

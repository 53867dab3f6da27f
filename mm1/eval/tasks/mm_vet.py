"""MM-Vet: open questions that need several abilities; a judge gives 0 to 1.

The question to the judge is ours: scores can only be compared with others from this file and the same judge.
"""

from mm1.eval.data.examples import Columns
from mm1.eval.data.original_releases import named_rows
from mm1.eval.data.published import Published, Source
from mm1.eval.fewshot import Example, Judged, JudgeRule, Scoring
from mm1.eval.metrics.judging import share
from mm1.eval.metrics.short_answers import same_word


def ask_judge(query: Example, answer: str) -> str:
    """The question to the judge: the right answer and the given one; the reply is how much of it is right."""
    return (
        f"Question: {query.question}\nRight answer: {query.answers[0]}\nGiven answer: {answer}\n\n"
        "In the right answer <AND> joins parts that are all needed, <OR> parts of which one is enough. "
        "How right is the given answer? Write only a number from 0.0 (all wrong) to 1.0 (all right), one decimal."
    )


task = Published(
    name="mm_vet",
    kind="free",
    source=Source(
        paper="https://arxiv.org/abs/2308.02490",
        hub="lmms-lab-encoder/MMVet",
        queries=("test",),
        original=named_rows("mm-vet.json", name="question_id", image="{imagename}"),
    ),
    columns=Columns(answers="answer"),
    scoring=Scoring(same_word, judge=JudgeRule(ask_judge, lambda reply: Judged(share(reply)))),
)

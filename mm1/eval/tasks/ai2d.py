"""AI2D, test: questions about diagrams from school books with four choices."""

from mm1.eval.data.diagrams import ai2d_release
from mm1.eval.data.examples import Columns
from mm1.eval.data.published import Published, Source
from mm1.eval.fewshot import Scoring
from mm1.eval.metrics.short_answers import same_without_marks, same_word

task = Published(
    name="ai2d",
    kind="choice",
    source=Source(
        paper="https://arxiv.org/abs/1603.07396",
        hub="lmms-lab-encoder/ai2d",
        queries=("test",),
        shots=("train",),
        original=ai2d_release,
    ),
    columns=Columns(id="#", answers="answer", choices="options", picture="drawn"),
    scoring=Scoring(same_word, by_rules={"lmms-eval": same_without_marks}),
)

"""AI2D, test: questions about diagrams of school books, four choices."""

from mm1.eval.data.published import Published
from mm1.eval.metrics.short_answers import same_word

task = Published(
    name="ai2d",
    source="https://arxiv.org/abs/1603.07396",
    hub="lmms-lab/ai2d",
    queries=("test",),
    kind="choice",
    metric=same_word,
    id="#",
    choices="options",
    answers="answer",
)

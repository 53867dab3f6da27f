"""DocVQA, validation, by ANLS."""

from mm1.eval.data.original_releases import listed
from mm1.eval.data.published import Published
from mm1.eval.metrics.short_answers import anls

task = Published(
    name="docvqa",
    source="https://arxiv.org/abs/2007.00398",
    hub="lmms-lab/DocVQA",
    folder="DocVQA",
    queries=("validation",),
    shots=("train",),
    kind="vqa",
    metric=anls,
    id="questionId",
    original=listed("{short}_v1.0_withQT.json", key="data", image="{image}", folders=("",)),
)

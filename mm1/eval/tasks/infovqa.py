"""InfographicVQA, validation, by ANLS."""

from mm1.eval.data.original_releases import listed
from mm1.eval.data.published import Published
from mm1.eval.metrics.short_answers import anls

task = Published(
    name="infovqa",
    source="https://arxiv.org/abs/2104.12756",
    hub="lmms-lab/DocVQA",
    folder="InfographicVQA",
    queries=("validation",),
    shots=("train",),
    kind="vqa",
    metric=anls,
    id="questionId",
    original=listed(
        "infographicsVQA_{short}_v1.0_withQT.json",
        key="data",
        image="{image_local_name}",
        folders=("infographicsvqa_images",),
    ),
)

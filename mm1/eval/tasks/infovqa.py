"""InfographicVQA, validation, by ANLS."""

from mm1.eval.data.examples import Columns
from mm1.eval.data.original_releases import listed
from mm1.eval.data.published import Published, Source
from mm1.eval.fewshot import Scoring
from mm1.eval.metrics.short_answers import anls

task = Published(
    name="infovqa",
    kind="vqa",
    source=Source(
        paper="https://arxiv.org/abs/2104.12756",
        hub="lmms-lab-encoder/DocVQA",
        queries=("validation",),
        shots=("train",),
        folder="InfographicVQA",
        original=listed(
            "infographicsVQA_{short}_v1.0*.json",
            key="data",
            image="{image_local_name}",
            folders=("infographicsvqa_images",),
        ),
    ),
    columns=Columns(id="questionId"),
    scoring=Scoring(anls),
)

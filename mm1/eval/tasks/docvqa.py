"""DocVQA, validation, by ANLS."""

from mm1.eval.data.examples import Columns
from mm1.eval.data.original_releases import first, listed
from mm1.eval.data.published import Published, Source
from mm1.eval.fewshot import Scoring
from mm1.eval.metrics.short_answers import anls

task = Published(
    name="docvqa",
    kind="vqa",
    source=Source(
        paper="https://arxiv.org/abs/2007.00398",
        hub="lmms-lab-encoder/DocVQA",
        queries=("validation",),
        shots=("train",),
        folder="DocVQA",
        original=first(
            listed("{short}_v1.0_withQT.json", key="data", image="{image}", folders=("", "spdocvqa_images")),
            listed(
                "{short}_v1.0.json", key="data", image="{image}", folders=("", "spdocvqa_images")
            ),  # of the test split
        ),
    ),
    columns=Columns(id="questionId"),
    scoring=Scoring(anls),
)

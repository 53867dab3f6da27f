"""DocVQA, validation, by ANLS."""

from mm1.eval.data.examples import Columns
from mm1.eval.data.original_releases import first, listed
from mm1.eval.data.published import Published, Source
from mm1.eval.fewshot import Scoring
from mm1.eval.metrics.short_answers import anls

FOLDERS = ("", "spdocvqa_images")
"""Where pictures lie: as their names say beside the questions, or flat in a folder of their own."""

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
            listed("{short}_v1.0_withQT.json", key="data", image="{image}", folders=FOLDERS),
            listed("{short}_v1.0.json", key="data", image="{image}", folders=FOLDERS),  # of the test split
        ),
    ),
    columns=Columns(id="questionId"),
    scoring=Scoring(anls),
)

"""A-OKVQA, validation: questions with four choices that need knowledge of the world."""

from mm1.eval.data.examples import Columns
from mm1.eval.data.original_releases import listed
from mm1.eval.data.published import Published, Source
from mm1.eval.fewshot import Scoring
from mm1.eval.metrics.short_answers import same_word

task = Published(
    name="aokvqa",
    kind="choice",
    source=Source(
        paper="https://arxiv.org/abs/2206.01718",
        hub="HuggingFaceM4/A-OKVQA",
        queries=("validation",),
        shots=("train",),
        original=listed("aokvqa_v1p0_{short}.json", image="{image_id:012d}.jpg", folders=("{short}2017",)),
    ),
    columns=Columns(answers="correct_choice_idx", choices="choices"),
    scoring=Scoring(same_word),
)

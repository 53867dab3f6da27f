"""VQAv2, validation, by VQA accuracy. (MM1 reports test-dev, whose answers are not public.)"""

from mm1.eval.data.examples import Columns, people
from mm1.eval.data.original_releases import vqa_files
from mm1.eval.data.published import Published, Source
from mm1.eval.fewshot import Scoring
from mm1.eval.metrics.vqa import vqa_accuracy, vqa_accuracy_official

task = Published(
    name="vqav2",
    kind="vqa",
    source=Source(
        paper="https://arxiv.org/abs/1612.00837",
        hub="lmms-lab-encoder/VQAv2",
        queries=("validation",),
        shots=("train",),
        original=vqa_files("v2_OpenEnded_mscoco_{part}_questions.json", "v2_mscoco_{part}_annotations.json"),
    ),
    columns=Columns(answers=people, picture="image_id"),
    scoring=Scoring(vqa_accuracy, by_rules={"official": vqa_accuracy_official}),
)

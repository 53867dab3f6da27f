"""VizWiz-VQA, validation, by VQA accuracy. (MM1 reports test-dev, whose answers are not public.)"""

from mm1.eval.data.examples import Columns, people
from mm1.eval.data.original_releases import listed
from mm1.eval.data.published import Published, Source
from mm1.eval.fewshot import Scoring
from mm1.eval.metrics.vqa import vqa_accuracy, vqa_accuracy_evalai, vqa_accuracy_official

task = Published(
    name="vizwiz",
    kind="vqa",
    source=Source(
        paper="https://arxiv.org/abs/1802.08218",
        hub="lmms-lab-encoder/VizWiz-VQA",
        queries=("val", "validation"),
        shots=("train",),
        original=listed("{short}.json", image="{image}", folders=("../{short}", "{short}"), question_id="image"),
    ),
    columns=Columns(answers=people),
    scoring=Scoring(vqa_accuracy, by_rules={"official": vqa_accuracy_official, "lmms-eval": vqa_accuracy_evalai}),
)

"""VizWiz-VQA, validation, by VQA accuracy. (MM1 reports test-dev, whose answers are not public.)"""

from mm1.eval.data.original_releases import listed
from mm1.eval.data.published import Published, people
from mm1.eval.metrics.vqa import vqa_accuracy

task = Published(
    name="vizwiz",
    source="https://arxiv.org/abs/1802.08218",
    hub="lmms-lab/VizWiz-VQA",
    queries=("val", "validation"),
    shots=("train",),
    kind="vqa",
    metric=vqa_accuracy,
    answers=people,
    original=listed("{short}.json", image="{image}", folders=("../{short}", "{short}"), question_id="image"),
)

"""TextVQA, validation, by VQA accuracy; the prompt has no OCR tokens."""

from mm1.eval.data.examples import Columns, people
from mm1.eval.data.original_releases import listed
from mm1.eval.data.published import Published, Source
from mm1.eval.fewshot import Scoring
from mm1.eval.metrics.vqa import vqa_accuracy, vqa_accuracy_evalai

task = Published(
    name="textvqa",
    kind="vqa",
    source=Source(
        paper="https://arxiv.org/abs/1904.08920",
        hub="lmms-lab-encoder/textvqa",
        queries=("validation",),
        shots=("train",),
        original=listed("TextVQA_0.5.1_{short}.json", key="data", image="{image_id}.jpg", folders=("train_images",)),
    ),
    columns=Columns(answers=people, picture="image_id"),
    scoring=Scoring(vqa_accuracy, by_rules={"official": vqa_accuracy_evalai, "lmms-eval": vqa_accuracy_evalai}),
)

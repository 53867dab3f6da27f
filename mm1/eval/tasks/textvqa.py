"""TextVQA, validation, by VQA accuracy, without OCR tokens in the prompt."""

from mm1.eval.data.original_releases import listed
from mm1.eval.data.published import Published, people
from mm1.eval.metrics.vqa import vqa_accuracy

task = Published(
    name="textvqa",
    source="https://arxiv.org/abs/1904.08920",
    hub="lmms-lab/textvqa",
    queries=("validation",),
    shots=("train",),
    kind="vqa",
    metric=vqa_accuracy,
    answers=people,
    original=listed("TextVQA_0.5.1_{short}.json", key="data", image="{image_id}.jpg", folders=("train_images",)),
)

"""GQA, balanced test-dev, by accuracy: one answer is right, letter for letter."""

from mm1.eval.data.original_releases import first, joined, named_rows
from mm1.eval.data.published import Published
from mm1.eval.metrics.short_answers import same_text

task = Published(
    name="gqa",
    source="https://arxiv.org/abs/1902.09506",
    hub="lmms-lab/GQA",
    queries=("testdev",),
    shots=("train",),
    kind="vqa",
    metric=same_text,
    id="id",
    answers="answer",
    parse=lambda text, query: text.lower().rstrip("."),
    original=first(
        joined("{split}_balanced_instructions", "{split}_balanced_images", key="imageId"),
        named_rows("{split}_balanced_questions.json", name="id", image="{imageId}.jpg"),
    ),
)

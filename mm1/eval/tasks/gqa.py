"""GQA, balanced test-dev, by accuracy: the answer must equal the only right one exactly."""

from mm1.eval.data.examples import Columns
from mm1.eval.data.original_releases import first, joined, named_rows
from mm1.eval.data.published import Published, Source
from mm1.eval.fewshot import Scoring
from mm1.eval.metrics.short_answers import same_text, same_without_marks

task = Published(
    name="gqa",
    kind="vqa",
    source=Source(
        paper="https://arxiv.org/abs/1902.09506",
        hub="lmms-lab-encoder/GQA",
        queries=("testdev",),
        shots=("train",),
        files=("{split}_balanced_*/*",),
        original=first(
            joined("{split}_balanced_instructions", "{split}_balanced_images", key="imageId"),
            named_rows("{split}_balanced_questions.json", name="id", image="{imageId}.jpg"),
        ),
    ),
    columns=Columns(id="id", answers="answer", picture="imageId"),
    scoring=Scoring(
        same_text,
        parse=lambda text, query: text.lower().rstrip("."),
        by_rules={"lmms-eval": same_without_marks},
    ),
)

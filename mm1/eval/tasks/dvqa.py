"""DVQA, validation: questions about bar charts by exact match; also for charts with known and with new words alone."""

from mm1.eval.data.examples import Columns
from mm1.eval.data.original_releases import listed, several
from mm1.eval.data.published import Published, Source
from mm1.eval.fewshot import Scoring
from mm1.eval.metrics.short_answers import same_word

task = Published(
    name="dvqa",
    kind="vqa",
    source=Source(
        paper="https://arxiv.org/abs/1801.08163",
        hub="train_qa.json, val_easy_qa.json and val_hard_qa.json beside images",
        queries=("validation",),
        shots=("train",),
        original=several(
            "difficulty",
            train=listed("{split}_qa.json", image="{image}", folders=("images",), chart="image"),
            easy=listed("{short}_easy_qa.json", image="{image}", folders=("images",), chart="image"),
            hard=listed("{short}_hard_qa.json", image="{image}", folders=("images",), chart="image"),
        ),
    ),
    columns=Columns(id="#", answers="answer", metadata=("difficulty",), picture="chart"),
    scoring=Scoring(same_word, part=lambda query: query.metadata["difficulty"]),
)

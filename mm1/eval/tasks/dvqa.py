"""DVQA, validation: questions about bar charts by exact match; also for charts with known and with new words alone."""

from collections.abc import Sequence

import numpy as np

from mm1.eval.data.examples import Columns
from mm1.eval.data.original_releases import listed, several
from mm1.eval.data.published import Published, Source
from mm1.eval.fewshot import Example, Scoring
from mm1.eval.metrics.short_answers import same_word


def totals(queries: Sequence[Example], answers: Sequence[str], scores: np.ndarray) -> dict[str, float]:
    """The mean score of each of both files, easy and hard."""
    files = [query.metadata["difficulty"] for query in queries]
    return {name: 100 * float(scores[[name == other for other in files]].mean()) for name in sorted(set(files))}


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
    scoring=Scoring(same_word, totals=totals),
)

"""ChartQA, test, by relaxed accuracy; beside it the questions of people and those made by a model."""

from collections.abc import Sequence

import numpy as np

from mm1.eval.data.original_releases import Reader, listed, several
from mm1.eval.data.published import Published
from mm1.eval.fewshot import Example
from mm1.eval.metrics.short_answers import relaxed_accuracy


def totals(queries: Sequence[Example], answers: Sequence[str], scores: np.ndarray) -> dict[str, float]:
    """The mean over the questions of each kind."""
    kinds = [query.metadata["type"].partition("_")[0] for query in queries]
    return {kind: 100 * float(scores[[kind == other for other in kinds]].mean()) for kind in sorted(set(kinds))}


def _file(kind: str) -> Reader:
    """One of a split's two files, of people or of a model."""
    return listed(f"{{short}}_{kind}.json", image="{imgname}", folders=("png",), question="query", answer="label")


task = Published(
    name="chartqa",
    source="https://arxiv.org/abs/2203.10244",
    hub="lmms-lab/ChartQA",
    queries=("test",),
    shots=("train",),
    kind="vqa",
    metric=relaxed_accuracy,
    id="#",
    answers="answer",
    metadata=("type",),
    totals=totals,
    original=several("type", human=_file("human"), augmented=_file("augmented")),
)

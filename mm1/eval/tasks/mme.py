"""MME: two questions of yes or no about each picture; sums of accuracy and accuracy+ for perception and cognition."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mm1.eval.data.original_releases import mme_folders
from mm1.eval.data.published import Published
from mm1.eval.data.rows import TaskError
from mm1.eval.fewshot import Example
from mm1.eval.metrics.answer_parsing import mme_word
from mm1.eval.metrics.short_answers import mme_scores, same_word


def totals(queries: Sequence[Example], answers: Sequence[str], scores: np.ndarray) -> dict[str, float]:
    """The two sums; every picture needs both of its questions."""
    images = [query.metadata["question_id"] for query in queries]
    if odd := [name for name, count in Counter(images).items() if count != 2]:
        raise TaskError(f"MME asks two questions of each picture; {odd[0]} has {images.count(odd[0])}")
    return mme_scores(scores.tolist(), [query.metadata["category"] for query in queries], images)


task = Published(
    name="mme",
    source="https://arxiv.org/abs/2306.13394",
    hub="lmms-lab/MME",
    queries=("test",),
    kind="choice",
    metric=same_word,
    id=lambda row: f"{row['question_id']} {row['question']}",
    answers="answer",
    answer_set=("yes", "no"),
    metadata=("question_id", "category"),
    together="question_id",
    parse=lambda text, query: mme_word(text),
    totals=totals,
    original=mme_folders,
)

"""MME: two yes-or-no questions about each image; sums of accuracy and accuracy+ for perception and cognition."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mm1.eval.data.examples import Columns
from mm1.eval.data.original_releases import mme_folders
from mm1.eval.data.published import Published, Source
from mm1.eval.data.rows import TaskError
from mm1.eval.fewshot import Example, Scoring
from mm1.eval.metrics.answer_parsing import mme_word
from mm1.eval.metrics.short_answers import mme_scores, same_word


def totals(queries: Sequence[Example], answers: Sequence[str], scores: np.ndarray) -> dict[str, float]:
    """The two sums. Both questions of every image are needed."""
    images = [query.metadata["question_id"] for query in queries]
    if odd := [name for name, count in Counter(images).items() if count != 2]:
        raise TaskError(f"MME asks two questions of each picture; {odd[0]} has {images.count(odd[0])}")
    return mme_scores(scores.tolist(), [query.metadata["category"] for query in queries], images)


task = Published(
    name="mme",
    kind="choice",
    source=Source(
        paper="https://arxiv.org/abs/2306.13394",
        hub="lmms-lab/MME",
        queries=("test",),
        original=mme_folders,
        together="question_id",
    ),
    columns=Columns(
        id=lambda row: f"{row['question_id']} {row['question']}",
        answers="answer",
        metadata=("question_id", "category"),
        answer_set=("yes", "no"),
    ),
    scoring=Scoring(same_word, parse=lambda text, query: mme_word(text), totals=totals),
)

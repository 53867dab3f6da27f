"""MME: two yes-or-no questions about each image; sums of accuracy and accuracy+ for perception and cognition."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mm1.eval.data.examples import Columns
from mm1.eval.data.original_releases import mme_folders
from mm1.eval.data.published import Published, Source
from mm1.eval.fewshot import Example, Scoring
from mm1.eval.metrics.answer_parsing import mme_word
from mm1.eval.metrics.short_answers import mme_scores, same_word


def totals(queries: Sequence[Example], answers: Sequence[str], scores: np.ndarray) -> dict[str, float]:
    """The two sums over the images with both of their questions, and how many images lack one."""
    counts = Counter(query.group for query in queries)
    pairs = [(query, score) for query, score in zip(queries, scores, strict=True) if counts[query.group] == 2]
    categories, images = [query.metadata["category"] for query, _ in pairs], [query.group for query, _ in pairs]
    sums = mme_scores([float(score) for _, score in pairs], categories, images)
    alone = sum(count != 2 for count in counts.values())
    return sums | ({"pictures without two questions": float(alone)} if alone else {})


task = Published(
    name="mme",
    kind="choice",
    source=Source(
        paper="https://arxiv.org/abs/2306.13394",
        hub="lmms-lab-encoder/MME",
        queries=("test",),
        original=mme_folders,
        together="question_id",
    ),
    columns=Columns(
        id=lambda row: f"{row['question_id']} {row['question']}",
        answers="answer",
        metadata=("category",),
        answer_set=("yes", "no"),
    ),
    scoring=Scoring(same_word, parse=lambda text, query: mme_word(text), totals=totals),
)

"""POPE: is an object in the image? The score is accuracy; F1 and the share of yes are totals, also by category."""

from collections.abc import Sequence

import numpy as np

from mm1.eval.data.examples import Columns
from mm1.eval.data.original_releases import listed, several
from mm1.eval.data.published import Published, Source
from mm1.eval.data.release_files import Reader
from mm1.eval.fewshot import Example, Scoring
from mm1.eval.metrics.answer_parsing import yes_or_no
from mm1.eval.metrics.short_answers import pope_scores, same_word

CATEGORIES = ("random", "popular", "adversarial")
"""How the absent objects were selected."""


def _file(category: str) -> Reader:
    """The file of one of the three ways in which absent objects were selected."""
    return listed(f"coco_pope_{category}.json", image="{image}", folders=("val2014",), question="text", answer="label")


def totals(queries: Sequence[Example], answers: Sequence[str], scores: np.ndarray) -> dict[str, float]:
    """F1, precision, recall and the share of yes; with several categories also each one's F1 and accuracy, and means.

    Source: the official code scores the three files one by one (https://github.com/AoiDragon/POPE).
    """
    labels = [query.answers[0] for query in queries]
    result = pope_scores(answers, labels)
    categories = np.array([query.metadata["category"] for query in queries])
    names = [name for name in CATEGORIES if name in categories]
    if len(names) < 2:
        return result
    for name in names:
        of_category = np.flatnonzero(categories == name).tolist()
        f1 = pope_scores([answers[n] for n in of_category], [labels[n] for n in of_category])["F1"]
        result |= {f"F1, {name}": f1, f"accuracy, {name}": 100 * float(scores[of_category].mean())}
    for what in ("F1", "accuracy"):
        result[f"{what}, mean of categories"] = float(np.mean([result[f"{what}, {name}"] for name in names]))
    return result


task = Published(
    name="pope",
    kind="choice",
    source=Source(
        paper="https://arxiv.org/abs/2305.10355",
        hub="lmms-lab-encoder/POPE",
        queries=("test",),
        original=several("category", **{name: _file(name) for name in CATEGORIES}),
    ),
    columns=Columns(
        id=lambda row: f"{row['category']}/{row['question_id']}",
        answers="answer",
        metadata=("category",),
        answer_set=("yes", "no"),
    ),
    scoring=Scoring(
        same_word,
        parse=lambda text, query: yes_or_no(text),
        totals=totals,
    ),
)

"""MMBench, English dev, by CircularEval: a question is right if it is right with its choices in every order.

The rows of one question differ by multiples of 1,000,000 in their index; the one with the lowest is the question as it
was written. Data without rotated copies ask each question once, and have vanilla accuracy alone.

Source: Liu et al., https://arxiv.org/abs/2307.06281, section 4.3; `mcq_circular_eval` of VLMEvalKit
(https://github.com/open-compass/VLMEvalKit/blob/main/vlmeval/dataset/utils/multiple_choice.py).
"""

from collections.abc import Sequence

import numpy as np

from mm1.eval.data.examples import Columns, lettered
from mm1.eval.data.original_releases import tsv
from mm1.eval.data.published import Published, Source
from mm1.eval.data.rows import Row
from mm1.eval.fewshot import Example, Scoring
from mm1.eval.metrics.short_answers import same_word
from mm1.eval.metrics.statistics import lowest


def question_with_hint(row: Row) -> str:
    """The question, after its hint if there is one."""
    hint = row.get("hint")
    return row["question"] if not hint or hint == "nan" else f"{hint}\n{row['question']}"


COPIES = 1_000_000
"""What the indices of the rotated copies of a question differ by."""


def question_of(row: Row) -> int | str:
    """The index of the question as it was written."""
    index = str(row["index"])
    return int(index) % COPIES if index.isdecimal() else index


def totals(queries: Sequence[Example], answers: Sequence[str], scores: np.ndarray) -> dict[str, float]:
    """Vanilla accuracy, of the questions as they were written, and with rotated copies circular accuracy."""
    written: dict[str, float] = {}
    for query, score in zip(queries, scores.tolist(), strict=True):
        if query.group not in written or query.id == query.group:
            written[query.group] = score
    vanilla = {"vanilla": 100 * float(np.mean(list(written.values())))}
    if len(written) == len(queries):
        return vanilla
    return {"circular": 100 * float(lowest(scores.tolist(), [query.group for query in queries]).mean())} | vanilla


task = Published(
    name="mmbench",
    kind="choice",
    source=Source(
        paper="https://arxiv.org/abs/2307.06281",
        hub="lmms-lab-encoder/MMBench",
        queries=("dev",),
        folder="en",
        original=tsv("[mM][mM][bB]*_{split}_[eE][nN]*.tsv", "[mM][mM][bB]*_{split}*.tsv"),
        together=question_of,
    ),
    columns=Columns(id="index", question=question_with_hint, answers="answer", choices=lettered),
    scoring=Scoring(same_word, totals=totals, whole=True),
)

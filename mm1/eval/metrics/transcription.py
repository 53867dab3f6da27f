"""How much of a text was read: one minus the character error rate."""

from collections.abc import Sequence

import numpy as np

from mm1.eval.metrics.references import checked
from mm1.eval.metrics.short_answers import edit_distance


def characters_right(answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """1 - the character error rate of each answer against the nearest reference, at least 0. Float64.

    The error rate is the number of characters to insert, delete or replace over those of the reference; all white space
    counts as one space.

    Source: ISRI's accuracy of characters (https://www.stephenvrice.com/images/AT-1995.pdf, section 2), which is not
    limited to 0.
    """
    scores = np.zeros(len(answers))
    for query, (answer, texts) in enumerate(zip(answers, checked(answers, references), strict=True)):
        ours = " ".join(answer.split())
        errors = [edit_distance(ours, text) / len(text) for text in (" ".join(text.split()) for text in texts)]
        scores[query] = max(0.0, 1 - min(errors))
    return scores

"""What every metric takes: answers, and for each one a list of references."""

from collections.abc import Callable, Sequence

import numpy as np

Metric = Callable[[Sequence[str], Sequence[Sequence[str]]], np.ndarray]
"""(answers, references of each) -> one score per query."""


def checked(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Sequence[Sequence[str]]:
    """`references`, after the check that there is a list with at least one text for every answer.

    Raises:
        ValueError: the number of lists differs, or a list is empty or a plain string.
    """
    if len(answers) != len(references):
        raise ValueError(f"{len(answers)} answers but references for {len(references)} queries")
    for query, texts in enumerate(references):
        if isinstance(texts, str) or not texts:
            raise ValueError(f"query {query} needs a list of at least one reference, found {texts!r}")
    return references

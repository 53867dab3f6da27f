"""How sure a mean score is: bootstrap intervals over queries, and paired differences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % confidence interval, in the unit of the scores."""

    mean: float
    low: float
    high: float

    @property
    def above_zero(self) -> bool:
        return self.low > 0

    @property
    def below_zero(self) -> bool:
        return self.high < 0


def bootstrap(scores: np.ndarray, *, seed: int, samples: int = 2000) -> Interval:
    """The mean of `scores` with its 95 % percentile interval, from `samples` draws with replacement.

    Queries are resampled: the interval says how far the score would move on other queries of the same kind, not after
    another training run. The n-gram weights of CIDEr stay those of the whole set. A score of nan is no score.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; for language
    tasks Koehn, https://aclanthology.org/W04-3250/.
    """
    scores = np.asarray(scores, dtype=np.float64)
    scores = scores[~np.isnan(scores)]
    if not len(scores):
        return Interval(math.nan, math.nan, math.nan)
    draws = np.random.default_rng([seed, samples])
    means = np.concatenate(
        [
            scores[draws.integers(0, len(scores), size=(50, len(scores)))].mean(axis=1)
            for _ in range(math.ceil(samples / 50))
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(mean(scores), float(low), float(high))


def paired_difference(ours: np.ndarray, theirs: np.ndarray, *, seed: int, samples: int = 2000) -> Interval:
    """The mean of `ours - theirs`, query by query, with its 95 % interval. The sign is certain if it excludes 0.

    Raises:
        ValueError: the two have scores of different numbers of queries.

    Source: the paired bootstrap, Koehn, https://aclanthology.org/W04-3250/, section 4.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"a paired difference needs the same queries: found {len(ours)} and {len(theirs)}")
    return bootstrap(np.asarray(ours) - np.asarray(theirs), seed=seed, samples=samples)


def lowest(scores: Sequence[float | None], groups: Sequence[str]) -> np.ndarray:
    """The lowest score of each group, in the order in which groups first occur; nan where a score is None. Float64."""
    of_group: dict[str, float] = {}
    for score, group in zip(scores, groups, strict=True):
        value = math.nan if score is None else float(score)
        of_group[group] = float(np.minimum(of_group.get(group, math.inf), value))
    return np.array(list(of_group.values()))


def mean(scores: np.ndarray) -> float:
    """The mean of the scores that aren't nan; nan if there are none."""
    scores = scores[~np.isnan(scores)]
    return float(scores.mean()) if len(scores) else math.nan

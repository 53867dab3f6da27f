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


@dataclass(frozen=True, slots=True)
class Weighted:
    """A score of each query, nan where there is none, and how much each counts in the mean; None: all alike."""

    scores: np.ndarray
    weights: np.ndarray | None = None

    def mean(self) -> float:
        """The mean of the scores that aren't nan; nan if there are none."""
        if self.weights is None:
            return mean(self.scores)
        known = ~np.isnan(self.scores)
        total = float(self.weights[known].sum())
        return float((self.weights * self.scores)[known].sum()) / total if total else math.nan

    def at(self, where: Sequence[int] | np.ndarray) -> "Weighted":
        """Those at these positions."""
        return Weighted(self.scores[where], None if self.weights is None else self.weights[where])

    def bootstrap(self, *, seed: int) -> Interval:
        """The mean with its 95 % interval."""
        if self.weights is None:
            return bootstrap(self.scores, seed=seed)
        return _ratio_interval([self], seed=seed)

    def difference(self, theirs: "Weighted", *, seed: int) -> Interval:
        """The mean less `theirs`, of the queries that both have a score of, with its 95 % interval."""
        if self.weights is None and theirs.weights is None:
            return paired_difference(self.scores, theirs.scores, seed=seed)
        return _ratio_interval([self, theirs], seed=seed)

    @classmethod
    def over(cls, trials: Sequence["Weighted"]) -> "Weighted":
        """The mean of several trials, query by query."""
        scores = np.array([trial.scores for trial in trials])
        if all(trial.weights is None for trial in trials):
            return cls(scores.mean(axis=0))
        weights = np.array([trial._counts() for trial in trials])
        return cls((weights * scores).sum(axis=0) / weights.sum(axis=0), weights.mean(axis=0))

    def _counts(self) -> np.ndarray:
        return np.ones(len(self.scores)) if self.weights is None else self.weights


def _ratio_interval(sets: Sequence[Weighted], *, seed: int, samples: int = 2000) -> Interval:
    """The weighted mean of the first set, less that of the second if there is one, with its 95 % interval."""
    known = ~np.any([np.isnan(one.scores) for one in sets], axis=0)
    if not known.any():
        return Interval(math.nan, math.nan, math.nan)
    signs = (1.0, -1.0)
    means = np.zeros(samples)
    draws = np.random.default_rng([seed, samples]).integers(0, known.sum(), size=(samples, known.sum()))
    for sign, one in zip(signs, sets, strict=False):
        weights = one._counts()[known]
        sums = (weights * one.scores[known])[draws].sum(axis=1)
        means += sign * sums / weights[draws].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    whole = sum(sign * one.at(known).mean() for sign, one in zip(signs, sets, strict=False))
    return Interval(float(whole), float(low), float(high))


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

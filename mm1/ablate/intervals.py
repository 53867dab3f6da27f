"""How sure a mean over seeds and queries is: the bootstrap over both, and the paired difference of two arms."""

import math
from collections.abc import Sequence

import numpy as np

from mm1.eval.metrics.statistics import Interval

SAMPLES = 2000

# Student's t at 97.5 % for 1, 2, ... degrees of freedom; beyond them the expansion of Cornish and Fisher is as exact.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_NORMAL = 1.960


def interval(parts: Sequence[np.ndarray], *, seed: int = 0) -> Interval:
    """The mean over parts, seeds and queries with its 95 % interval; each part is [seeds, queries] of one task.

    Seeds and queries are drawn with replacement, the same seeds for all parts. Two or three seeds say little about
    others: their bootstrap is too narrow, so the deviations of seeds are widened by Student's t over the normal
    quantile, and by sqrt(n / (n - 1)). For one query that gives about the t interval of the seeds, and for many seeds
    the plain bootstrap. With one seed only queries are drawn; a single number has no interval.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; for few seeds Hesterberg, What
    Teachers Should Know about the Bootstrap (2015), section 3.2.
    """
    parts = [np.asarray(part, dtype=np.float64) for part in parts]
    seeds = len(parts[0]) if parts else 0
    if not seeds or any(part.size == 0 for part in parts):
        return Interval(math.nan, math.nan, math.nan)
    means_S = np.mean([part.mean(axis=1) for part in parts], axis=0)
    mean = float(means_S.mean())
    if seeds == 1 and all(part.shape[1] == 1 for part in parts):
        return Interval(mean, math.nan, math.nan)
    draws = np.random.default_rng([seed, SAMPLES])
    weights_BS = draws.multinomial(seeds, np.full(seeds, 1 / seeds), size=SAMPLES) / seeds
    sampled_B = (_widening(seeds) - 1) * (weights_BS @ (means_S - mean))
    for part in parts:
        queries = part.shape[1]
        weights_BQ = draws.multinomial(queries, np.full(queries, 1 / queries), size=SAMPLES) / queries
        sampled_B = sampled_B + ((weights_BQ @ part.T) * weights_BS).sum(axis=1) / len(parts)
    low, high = np.quantile(sampled_B, [0.025, 0.975])
    return Interval(mean, float(low), float(high))


def difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], *, seed: int = 0) -> Interval:
    """The mean of ours - theirs, paired by seed and query, with its 95 % interval.

    Raises:
        ValueError: the two have other numbers of seeds or queries.
    """
    shapes = [[part.shape for part in parts] for parts in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"a paired difference needs the same seeds and queries: found {shapes[0]} and {shapes[1]}")
    return interval([mine - other for mine, other in zip(ours, theirs, strict=True)], seed=seed)


def _widening(seeds: int) -> float:
    """The factor for the deviations of so many seeds."""
    if seeds == 1:
        return 1.0
    freedom = seeds - 1
    t = _T[freedom - 1] if freedom <= len(_T) else _NORMAL + 2.372 / freedom + 2.823 / freedom**2
    return t / _NORMAL * math.sqrt(seeds / freedom)

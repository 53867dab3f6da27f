"""The bootstrap over seeds and queries, against scipy where scipy has the case."""

import numpy as np
import pytest
from scipy import stats

from mm1.ablate.intervals import _widening, difference, interval

RNG = np.random.default_rng(7)


def test_with_one_seed_it_is_the_bootstrap_over_queries():
    scores = RNG.gamma(2.0, size=(1, 80))
    ours = interval([scores])
    theirs = stats.bootstrap((scores[0],), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert ours.mean == pytest.approx(scores.mean())
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=0.02)


def test_with_many_seeds_and_one_query_it_is_the_bootstrap_over_seeds():
    scores = RNG.normal(size=(200, 1))
    ours = interval([scores])
    theirs = stats.bootstrap((scores[:, 0],), np.mean, n_resamples=20_000, method="percentile", rng=1)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.012)


@pytest.mark.parametrize("seeds", [5, 8, 12])
def test_with_few_seeds_and_one_query_it_is_about_students_interval(seeds):
    scores = RNG.normal(size=(seeds, 1))
    ours = interval([scores])
    low, high = stats.ttest_1samp(scores[:, 0], 0).confidence_interval()
    assert (ours.high - ours.low) == pytest.approx(high - low, rel=0.12)


@pytest.mark.parametrize("freedom", [1, 2, 5, 10, 11, 30, 100])
def test_the_quantiles_are_students(freedom):
    factor = stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975) * np.sqrt((freedom + 1) / freedom)
    assert _widening(freedom + 1) == pytest.approx(factor, rel=0.005)


@pytest.mark.parametrize("seeds", [2, 3])
def test_the_interval_of_two_or_three_seeds_holds_the_truth_as_often_as_it_says(seeds):
    """Plainly resampled, three seeds hold it in about three of four cases only."""
    draws = RNG.normal(size=(400, seeds, 1))
    held = [one.low <= 0 <= one.high for one in (interval([scores], seed=n) for n, scores in enumerate(draws))]
    assert 0.91 <= np.mean(held) <= 1.0


def test_seeds_and_queries_both_widen_it():
    """Simulated from its model: a query's own difficulty, a seed's own luck, and noise of both."""
    held = []
    for number in range(200):
        queries, seeds = RNG.normal(size=50), 0.3 * RNG.normal(size=(4, 1))
        one = interval([queries + seeds + RNG.normal(size=(4, 50))], seed=number)
        held.append(one.low <= 0 <= one.high)
    assert np.mean(held) >= 0.9


def test_a_difference_is_paired_by_seed_and_query():
    base = RNG.normal(scale=10, size=(3, 40))
    ours = difference([base + 1 + 0.01 * RNG.normal(size=base.shape)], [base])
    assert 0.9 < ours.low < 1 < ours.high < 1.1


def test_the_mean_of_tasks_weighs_each_task_alike():
    parts = [np.full((2, 10), 4.0), np.full((2, 1000), 8.0)]
    assert interval(parts).mean == 6.0


def test_one_number_has_no_interval():
    one = interval([np.array([[3.0]])])
    assert one.mean == 3.0
    assert np.isnan(one.low)
    assert [one.above_zero, one.below_zero] == [False, False]

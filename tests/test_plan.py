"""The order of training as a pure function: rows of a source, and which source fills which row."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1.data import plan as plan_module
from mm1.data.mixture import Mixture
from mm1.data.plan import Plan, Spans, pack

T, K = 64, 4

shapes = st.lists(st.tuples(st.integers(1, T), st.integers(0, K)), min_size=1, max_size=200)


def spans(shape: list[tuple[int, int]]) -> Spans:
    length, images = np.array(shape).T
    return Spans(np.arange(len(shape)), np.zeros_like(length), length, images)


def plan(shape: list[tuple[int, int]], seed: int) -> Plan:
    return Plan(spans(shape), row_length=T, row_images=K, seed=(seed,))


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch):
    monkeypatch.setattr(plan_module, "WINDOW", 64)


@settings(max_examples=60, deadline=None)
@given(shape=shapes, seed=st.integers(0, 2**31), epoch=st.integers(0, 3))
def test_an_epoch_holds_every_span_once_within_the_budgets(shape, seed, epoch):
    made = plan(shape, seed)
    rows = [made.row(epoch * made.epoch_rows + k) for k in range(made.epoch_rows)]
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(shape)))
    for row in rows:
        assert made.spans.length[row].sum() <= T
        assert made.spans.images[row].sum() <= K


@settings(max_examples=30, deadline=None)
@given(shape=shapes, seed=st.integers(0, 2**31), k=st.integers(0, 10**9))
def test_a_row_is_the_same_whatever_was_asked_before(shape, seed, k):
    fresh, used = plan(shape, seed), plan(shape, seed)
    for other in (0, 5, k + 1):
        used.row(other)
    assert fresh.row(k).tolist() == used.row(k).tolist() == pickle.loads(pickle.dumps(used)).row(k).tolist()


def test_epochs_and_seeds_pair_spans_differently(monkeypatch):
    monkeypatch.setattr(plan_module, "WINDOW", 4096)
    shape = [(int(n), 1) for n in np.random.default_rng(0).integers(5, 20, 2000)]

    def partners(seed: int, epoch: int) -> set[frozenset[int]]:
        made = plan(shape, seed)
        return {frozenset(made.row(epoch * made.epoch_rows + k).tolist()) for k in range(made.epoch_rows)}

    assert len(partners(0, 0) & partners(0, 1)) < 10
    assert len(partners(0, 0) & partners(1, 0)) < 10


def test_caption_like_lengths_pack_with_under_two_percent_padding():
    random = np.random.default_rng(1)
    length = 18 + random.gamma(2.0, 4.0, 4096).astype(int)
    rows = pack(length, np.ones_like(length), row_length=512, row_images=32)
    assert 1 - length.sum() / (512 * len(rows)) < 0.02


def test_a_span_larger_than_a_row_is_refused_with_its_size():
    with pytest.raises(ValueError, match="65 places"):
        pack(np.array([65]), np.array([0]), row_length=64, row_images=4)


@settings(max_examples=40, deadline=None)
@given(
    shares=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    seed=st.integers(0, 2**31),
    deck=st.integers(0, 10**7),
)
def test_every_aligned_window_has_exactly_its_shares_and_sources_advance_by_one(shares, seed, deck):
    mixture = Mixture(shares, seed)
    window = [mixture.source(n) for n in range(deck * mixture.deck, (deck + 1) * mixture.deck)]
    for source, share in enumerate(shares):
        assert [k for s, k in window if s == source] == list(range(deck * share, (deck + 1) * share))


def test_decks_are_shuffled_differently():
    mixture = Mixture([9, 9, 2], seed=0)
    decks = {tuple(mixture.source(20 * deck + place)[0] for place in range(20)) for deck in range(10)}
    assert len(decks) == 10

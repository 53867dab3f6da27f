"""The order of training as a pure function: sequences of a source, and which source gives which sequence."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1.data import plan as plan_module
from mm1.data.microbatches import micro_batches, of_rank, padded
from mm1.data.mixture import LARGEST_DECK, PRECISION, Mixture, sequence_shares
from mm1.data.pack import pack
from mm1.data.plan import Packing, Plan, Spans, joined, pack_windows

T, K = 64, 4

shapes = st.lists(st.tuples(st.integers(1, T), st.integers(0, K)), min_size=1, max_size=200)


def spans(shape: list[tuple[int, int]]) -> Spans:
    length, images = np.array(shape).T
    return Spans(np.arange(len(shape)), np.zeros_like(length), length, images, length)


def plan(shape: list[tuple[int, int]], seed: int) -> Plan:
    of_shape = spans(shape)
    return Plan(of_shape, joined(Packing, pack_windows(of_shape, sequence_length=T, max_images=K)), seed=(seed,))


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch):
    monkeypatch.setattr(plan_module, "WINDOW", 64)


@settings(max_examples=60)
@given(shape=shapes, seed=st.integers(0, 2**31), epoch=st.integers(0, 3))
def test_an_epoch_holds_every_span_once_within_the_budgets(shape, seed, epoch):
    planned = plan(shape, seed)
    sequences = [planned.sequence(epoch * planned.epoch_sequences + k) for k in range(planned.epoch_sequences)]
    assert sorted(np.concatenate(sequences).tolist()) == list(range(len(shape)))
    for sequence in sequences:
        assert planned.spans.length[sequence].sum() <= T
        assert planned.spans.images[sequence].sum() <= K
    counted = [planned.images(epoch * planned.epoch_sequences + k) for k in range(planned.epoch_sequences)]
    assert counted == [planned.spans.images[sequence].sum() for sequence in sequences]


@settings(max_examples=30)
@given(shape=shapes, seed=st.integers(0, 2**31), k=st.integers(0, 10**9))
def test_a_sequence_is_the_same_whatever_was_computed_before(shape, seed, k):
    fresh, used = plan(shape, seed), plan(shape, seed)
    for other in (0, 5, k + 1):
        used.sequence(other)
    assert (
        fresh.sequence(k).tolist() == used.sequence(k).tolist() == pickle.loads(pickle.dumps(used)).sequence(k).tolist()
    )


def test_epochs_and_seeds_pair_spans_differently(monkeypatch):
    monkeypatch.setattr(plan_module, "WINDOW", 8192)
    shape = [(int(n), 1) for n in np.random.default_rng(0).integers(5, 20, 2000)]

    def partners(seed: int, epoch: int) -> set[frozenset[int]]:
        planned = plan(shape, seed)
        return {
            frozenset(planned.sequence(epoch * planned.epoch_sequences + k).tolist())
            for k in range(planned.epoch_sequences)
        }

    assert len(partners(0, 0) & partners(0, 1)) < 10
    assert len(partners(0, 0) & partners(1, 0)) < 10


def test_caption_like_lengths_pack_with_under_half_a_percent_of_padding():
    random = np.random.default_rng(1)
    length = 18 + random.gamma(2.0, 4.0, 4096).astype(int)
    sequences = pack(length, np.ones_like(length), sequence_length=512, max_images=32)
    assert 1 - length.sum() / (512 * len(sequences)) < 0.005


def test_where_images_are_scarce_no_sequence_could_take_one_more():
    random = np.random.default_rng(2)
    length, images = random.integers(5, 20, 500), random.integers(1, 4, 500)
    sequences = pack(length, images, sequence_length=512, max_images=12)
    assert sorted(item for sequence in sequences for item in sequence) == list(range(500))
    assert len(sequences) <= -(-images.sum() // 12) + 1


def test_a_span_larger_than_a_sequence_is_refused_with_its_size():
    with pytest.raises(ValueError, match="65 positions"):
        pack(np.array([65]), np.array([0]), sequence_length=64, max_images=4)


SHARES = st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any)


@settings(max_examples=60)
@given(
    stages=st.lists(st.tuples(SHARES, st.integers(1, 60)), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
)
def test_every_deck_of_every_stage_has_its_shares_and_no_source_skips_or_repeats_a_sequence(stages, seed):
    first_sequence = np.cumsum([0, *(count for _, count in stages)]).tolist()
    shares = [of_stage for of_stage, _ in stages]
    mixture = Mixture(shares[0], seed, changes=list(zip(first_sequence[1:-1], shares[1:], strict=True)))
    dealt = [mixture.source(n) for n in range(first_sequence[-1] + 100)]
    for source in range(3):
        numbers = [k for s, k in dealt if s == source]
        assert numbers == list(range(len(numbers)))
    for number, of_stage in enumerate(shares):
        deck, last = sum(of_stage), [*first_sequence[1:-1], len(dealt)][number]
        for start in range(first_sequence[number], last - deck + 1, deck):
            sources = [s for s, _ in dealt[start : start + deck]]
            assert [sources.count(source) for source in range(3)] == of_stage


@settings(max_examples=40)
@given(shares=SHARES, later=SHARES, seed=st.integers(0, 2**31), first=st.integers(1, 10**9), n=st.integers(0, 10**9))
def test_a_far_sequence_has_its_source_without_those_before_it(shares, later, seed, first, n):
    mixture = Mixture(shares, seed, changes=[(first, later)])
    source, k = mixture.source(first + n)
    assert later[source]
    assert k == (first // sum(shares)) * shares[source] + sum(
        mixture.source(m)[0] == source for m in range(first - first % sum(shares), first)
    ) + (n // sum(later)) * later[source] + sum(
        mixture.source(first + m)[0] == source for m in range(n - n % sum(later), n)
    )


@settings(max_examples=40)
@given(
    shares=st.lists(st.integers(1, 60), min_size=2, max_size=5),
    trained=st.lists(st.floats(20.0, 4000.0), min_size=5, max_size=5),
)
def test_shares_in_tokens_are_met_by_decks_of_whole_sequences(shares, trained):
    counts = sequence_shares(shares, trained[: len(shares)])
    tokens = np.array(counts) * trained[: len(shares)]
    rarest = min(s / t for s, t in zip(shares, trained, strict=False)) / sum(
        s / t for s, t in zip(shares, trained, strict=False)
    )
    precision = max(PRECISION, 1 / (LARGEST_DECK * rarest))  # no source can have less than one sequence
    assert np.abs(tokens / tokens.sum() / (np.array(shares) / sum(shares)) - 1).max() <= precision


def test_stages_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="later and later"):
        Mixture([1], 0, changes=[(9, [2]), (9, [1])])


def test_decks_are_shuffled_differently():
    mixture = Mixture([9, 9, 2], seed=0)
    decks = {tuple(mixture.source(20 * deck + offset)[0] for offset in range(20)) for deck in range(10)}
    assert len(decks) == 10


images_of_a_step = st.integers(1, 6).flatmap(
    lambda count: st.lists(st.integers(0, 40), min_size=24 * count, max_size=24 * count)
)


@settings(max_examples=40)
@given(images=images_of_a_step, micro_batch_size=st.sampled_from([1, 2, 3]))
def test_every_number_of_ranks_shares_out_the_same_micro_batches(images, micro_batch_size):
    parts = micro_batches(images, micro_batch_size=micro_batch_size)
    assert sorted(number for batch in parts for number in batch) == list(range(len(images)))
    assert {len(batch) for batch in parts} == {micro_batch_size}
    for world in (ranks for ranks in (1, 2, 3, 4, 8) if len(parts) % ranks == 0):
        ranks = [of_rank(parts, rank=rank, world=world) for rank in range(world)]
        assert sorted(batch for rank in ranks for batch in rank) == sorted(parts)
        assert {len(rank) for rank in ranks} == {len(parts) // world}


def test_ranks_get_similar_numbers_of_images():
    images = np.random.default_rng(0).choice([0, 2, 9, 27], 64).tolist()
    parts = micro_batches(images, micro_batch_size=4)
    sums = [
        sum(images[number] for batch in of_rank(parts, rank=rank, world=8) for number in batch) for rank in range(8)
    ]
    in_order = [sum(images[8 * rank : 8 * rank + 8]) for rank in range(8)]
    assert max(sums) <= 1.05 * np.mean(sums)
    assert max(in_order) > 1.2 * np.mean(in_order)


def test_the_encoder_gets_less_than_five_percent_more_images_and_few_sizes():
    assert all(count <= padded(count) for count in range(5000))
    assert all(padded(count) < 1.05 * count for count in range(2, 5000))
    assert padded(0) == padded(1) == 2  # a single tile would be compiled as a shape of its own
    assert len({padded(count) for count in range(64, 129)}) <= 17

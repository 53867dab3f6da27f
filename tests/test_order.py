"""The order of the shipped sample, byte for byte: any ranks, workers and start, with a curriculum; indexes kept."""

import hashlib
import itertools
import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from mm1.config.base import ConfigError
from mm1.config.run import DataConfig, SourceConfig, Stage, parse
from mm1.data.loader import Sequences, batches
from mm1.document import IGNORED, Batch
from mm1.tiling import TileSpec

BATCH, MICRO = 24, 1  # micro-batches that 1, 2, 3, 4 and 8 ranks share out evenly
STEPS = 2

SAMPLE = DataConfig(
    sources={
        "captions": SourceConfig(store="sample:captions-test", share=9),
        "interleaved": SourceConfig(store="sample:interleaved-test", share=9),
        "text": SourceConfig(store="sample:text-test", share=2),
    },
    curriculum=[
        Stage(step=2, shares={"captions": 10, "interleaved": 2, "text": 8}),
        Stage(step=3, shares={"interleaved": 1}),
    ],
    workers=0,
)


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    """Where the sample's indexes are kept for all tests of this file."""
    return tmp_path_factory.mktemp("index")


def opened(index: Path, data: DataConfig = SAMPLE) -> Sequences:
    return Sequences(data, tile=TileSpec(24, 16), seed=1, batch_size=BATCH, folder=index / data.unit)


def digest(batch: Batch) -> str:
    tensors = (batch.tokens_BT, batch.targets_BT, batch.document_BT, batch.position_BT, batch.images_NCYX)
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in (*tensors, batch.source_B))).hexdigest()


def global_batches(sequences: Sequences, *, start: int, world: int, workers: int) -> list[list[str]]:
    """Of each step what all its micro-batches are, whichever rank had them."""
    sequences.data = sequences.data.model_copy(update={"workers": workers})
    digests: list[list[str]] = [[] for _ in range(STEPS)]
    for rank in range(world):
        stream = batches(
            sequences, start_sequence=start * BATCH, batch_size=BATCH, micro_batch_size=MICRO, rank=rank, world=world
        )
        for step, parts in enumerate(itertools.islice(stream, STEPS)):
            digests[step] += [digest(batch) for batch in parts]
    return [sorted(step) for step in digests]


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_every_rank_and_worker_count_reads_the_same_global_batches(index, world, workers):
    sequences, start = opened(index), world % 4 + workers
    assert global_batches(sequences, start=start, world=world, workers=workers) == _alone(sequences, start)


def _alone(sequences: Sequences, start: int) -> list[list[str]]:
    """The same by one process, one step after the other from the run's start."""
    sequences.data = sequences.data.model_copy(update={"workers": 0})
    stream = batches(sequences, start_sequence=0, batch_size=BATCH, micro_batch_size=MICRO)
    steps = itertools.islice(stream, start, start + STEPS)
    return [sorted(digest(batch) for batch in step) for step in steps]


def test_a_worker_decodes_into_memory_that_it_shares_with_the_run(index, monkeypatch):
    """So the tiles are not copied when the batch is sent."""
    sequences, numbers = opened(index), [0, 1, 2, 3]
    alone = sequences.batch(numbers)
    monkeypatch.setattr("mm1.data.loader.get_worker_info", lambda: "a worker")
    shared = sequences.batch(numbers)
    assert shared.images
    assert digest(shared) == digest(alone)
    assert [batch.images_NCYX.is_shared() for batch in (alone, shared)] == [False, True]


def test_a_far_step_is_reached_at_once(index):
    sequences = opened(index)
    stream = batches(sequences, start_sequence=10**6 * BATCH, batch_size=BATCH, micro_batch_size=MICRO)
    assert {int(source) for batch in next(stream) for source in batch.source_B} == {1}  # the last stage's only source


@pytest.mark.parametrize("held_out", [None, {"captions": "sample:captions-test"}])
def test_a_batch_says_which_sequences_of_the_run_it_holds(index, held_out):
    sequences = Sequences(SAMPLE, tile=TileSpec(24, 16), seed=1, batch_size=BATCH, stores=held_out)
    assert sequences.batch([7, 3, 10**9]).sequence_B.tolist() == [7, 3, 10**9]
    stream = batches(sequences, start_sequence=BATCH, batch_size=BATCH, micro_batch_size=2)
    numbers = [number for batch in next(stream) for number in batch.sequence_B.tolist()]
    assert sorted(numbers) == list(range(BATCH, 2 * BATCH))


def test_sequences_have_the_images_that_the_plan_counts(index):
    sequences = opened(index)
    for number in (*range(8), 10**9):
        assert sequences.batch([number]).images == sequences.images(number)


def test_the_sample_fills_its_sequences(index):
    sequences = Sequences(
        SAMPLE.model_copy(update={"sequence_length": 4096, "max_images": 64}),
        tile=TileSpec(24, 16),
        seed=1,
        batch_size=1,
    )
    for source in sequences.sources:
        positions = int(source.spans.length.sum())
        least = max(-(-positions // 4096), -(-int(source.spans.images.sum()) // 64))
        assert source.plan.epoch_sequences <= least + 1


def test_shares_in_tokens_are_realised_over_an_epoch(index):
    data = SAMPLE.model_copy(update={"unit": "tokens", "curriculum": []})
    sequences = opened(index, data)
    tokens = np.array(sequences.mixture.stages[0]) * [source.trained_per_sequence for source in sequences.sources]
    assert tokens / tokens.sum() == pytest.approx([0.45, 0.45, 0.1], rel=0.006)
    source = sequences.sources[0]
    counted = sum(
        int((sequences.batch([n]).targets_BT != IGNORED).sum())
        for n in _sequences_from(sequences, 0, source.plan.epoch_sequences)
    )
    assert counted == int(source.spans.trained.sum())


def _sequences_from(sequences: Sequences, origin: int, count: int) -> list[int]:
    """The first `count` sequences of the run that a source gives."""
    numbers = (n for n in itertools.count() if sequences.mixture.source(n)[0] == origin)
    return list(itertools.islice(numbers, count))


def test_an_index_is_kept_and_gives_the_same_sequences(index, tmp_path, monkeypatch):
    first = Sequences(SAMPLE, tile=TileSpec(24, 16), seed=1, batch_size=BATCH, folder=tmp_path)
    elsewhere = opened(index)
    monkeypatch.setattr("mm1.data.index.encode_many", None)  # a second start reads no text
    second = Sequences(SAMPLE, tile=TileSpec(24, 16), seed=1, batch_size=BATCH, folder=tmp_path)
    sent = pickle.loads(pickle.dumps(second))
    for number in (0, 3, 30, 77, 10**6):
        assert len({digest(each.batch([number])) for each in (first, second, sent, elsewhere)}) == 1
    assert len(pickle.dumps(second)) < 20_000  # workers map the columns, they are not sent


def test_another_store_under_the_same_name_is_noticed_and_indexed_again(stores, tmp_path, caplog):
    held = tmp_path / "held.lance"
    data = DataConfig(sources={"held": SourceConfig(store=str(held))}, sequence_length=64)

    def open_sequences() -> Sequences:
        return Sequences(data, tile=TileSpec(8, 4), seed=0, batch_size=1, folder=tmp_path / "index")

    shutil.copytree(stores["text"], held)
    before = open_sequences()
    shutil.rmtree(held)
    shutil.copytree(stores["captions"], held)
    for _ in range(2):  # at every start, not only when it is indexed
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="mm1"):
            after = open_sequences()
        assert "the store is not the one this run began with" in caplog.text
    assert before.sources[0].spans.images.sum() == 0
    assert after.sources[0].spans.images.sum() == 40


@pytest.mark.parametrize("spoiled", ["short column", "no column", "no about", "half an about"])
def test_an_index_that_a_crash_spoiled_is_computed_again(stores, tmp_path, spoiled):
    data = DataConfig(sources={"text": SourceConfig(store=str(stores["text"]))}, sequence_length=64)

    def open_sequences() -> Sequences:
        return Sequences(data, tile=TileSpec(8, 4), seed=0, batch_size=1, folder=tmp_path)

    expected = digest(open_sequences().batch([3]))
    kept = next((tmp_path / "text").glob("*/about.json")).parent
    (tmp_path / "text" / "tmpkilled").mkdir()
    match spoiled:
        case "short column":
            (kept / "start").write_bytes((kept / "start").read_bytes()[:-4])
        case "no column":
            (kept / "start").unlink()
        case "no about":
            (kept / "about.json").unlink()
        case "half an about":
            (kept / "about.json").write_text('{"key": {"for')
    assert digest(open_sequences().batch([3])) == expected
    assert {path.name for path in (tmp_path / "text").iterdir()} == {kept.name, "lock"}


def test_the_old_name_of_the_unit_is_answered_with_the_new_one():
    with pytest.raises(ConfigError, match=r"data\.unit: 'rows' is now called 'sequences'"):
        parse({"data": {"unit": "rows"}})


@pytest.mark.parametrize(
    ("curriculum", "message"),
    [
        ([{"step": 5, "shares": {"caption": 1}}], "names 'caption'; did you mean 'captions'"),
        ([{"step": 5, "shares": {"captions": 0}}], "one of them above 0"),
        ([{"step": 5, "shares": {"captions": 1}}, {"step": 5, "shares": {"text": 1}}], "order of steps"),
    ],
)
def test_a_curriculum_that_cannot_be_met_is_refused(curriculum, message):
    data = SAMPLE.model_dump(mode="json") | {"curriculum": curriculum}
    with pytest.raises(ConfigError, match=message):
        parse({"data": data})

"""Several ranks learn what one rank learns, however weights, heads and experts are divided, also after a resume."""

import shutil
import sys
from pathlib import Path

import pytest
import small
from pair import Pair, train_all

from mm1 import dist
from mm1.config import run as config
from mm1.config.base import ConfigError
from mm1.config.model import SparseConfig
from mm1.config.run import ParallelConfig, RunConfig
from mm1.train import coordinator
from mm1.train.log import read_metrics
from mm1.train.parallel import parallel_dims
from mm1.train.run import train_run

SPARSE = SparseConfig(experts=4, every=2, load_balance_weight=0.01, router_z_weight=0.001)


def run_of(stores, *, sparse: bool = False, **parallel) -> RunConfig:
    """Twenty steps with two heads, to be divided; half of the sequences are text, so a rank may have no image."""
    run = small.run(stores)
    run.steps, run.micro_batch_size, run.checkpoint_every = 20, 1, 10
    run.data.sources["text"].share = 3
    run.model.decoder = run.model.decoder.model_copy(update={"heads": 2, "kv_heads": 2, "qk_norm": True})
    run.model.decoder.sparse = SPARSE if sparse else SparseConfig()
    run.parallel = ParallelConfig(**parallel)
    return run


def slower(run: RunConfig) -> RunConfig:
    """The run at a lower rate: at the law's, 4.5e-3, differences from the order of sums grow to 1.1e-5."""
    run.optim.learning_rate = 2e-3
    return run


def train_runs(runs: dict[str, RunConfig], folder: Path, *, ranks: int) -> None:
    """Train each run in `folder/NAME` on so many ranks, all in the same processes."""
    for name, run in runs.items():
        config.save(run, folder / f"{name}.json")
    if ranks == 1:
        for name, run in runs.items():
            train_run(run, folder / name)
        return
    pair = Pair(train_all, [(folder / f"{name}.json", folder / name) for name in runs], ranks=ranks)
    codes = pair.end(400)
    assert codes == [0] * ranks, pair.messages()


def assert_same_training(left: Path, right: Path) -> None:
    """Losses to 1e-5; norms, in which rounding adds up over every parameter, to 1e-4 of themselves."""
    ours, theirs = read_metrics(left), read_metrics(right)
    assert [record["step"] for record in ours] == list(range(1, 21))
    for name, tolerance in (("loss", {"abs": 1e-5, "rel": 0}), ("gradient_norm", {"rel": 1e-4})):
        expected = pytest.approx([record[name] for record in theirs], **tolerance)
        assert [record[name] for record in ours] == expected, left.name


TWO = {
    "fully sharded": {},
    "hybrid": {"dp_replicate": 2},
    "tensor": {"tp": 2},
    "recomputed": {"activation_checkpointing": "full"},
    "recomputed in part": {"activation_checkpointing": "selective"},
}
TWO_SPARSE = {
    "sparse": {},
    "expert": {"ep": 2},
    "sparse tensor": {"tp": 2},
    "expert, recomputed": {"ep": 2, "activation_checkpointing": "selective"},
}
FOUR = {"hybrid": {"dp_replicate": 2, "dp_shard": 2}, "tensor": {"dp_shard": 2, "tp": 2}}
FOUR_SPARSE = {
    "expert of four": {"ep": 2},
    "expert in replicas": {"dp_replicate": 2, "ep": 2},
    "expert and tensor": {"ep": 2, "tp": 2},
}


@pytest.mark.parametrize(
    ("ranks", "dense", "sparse"),
    [
        (2, ["fully sharded", "tensor"], ["expert"]),
        pytest.param(
            2, ["hybrid", "recomputed", "recomputed in part"], ["sparse", "sparse tensor"], marks=pytest.mark.long
        ),
        pytest.param(2, [], ["expert, recomputed"], marks=pytest.mark.long),
        pytest.param(4, [*FOUR], [*FOUR_SPARSE], marks=pytest.mark.nightly),
    ],
)
def test_ranks_learn_what_one_rank_learns(stores, tmp_path, ranks, dense, sparse):
    layouts = {2: (TWO, TWO_SPARSE), 4: (FOUR, FOUR_SPARSE)}[ranks]
    alone = {"dense": slower(run_of(stores)), "with experts": slower(run_of(stores, sparse=True))}
    train_runs(alone, tmp_path, ranks=1)
    many = {name: slower(run_of(stores, **layouts[0][name])) for name in dense}
    many |= {name: slower(run_of(stores, sparse=True, **layouts[1][name])) for name in sparse}
    train_runs(many, tmp_path, ranks=ranks)
    for name in many:
        assert_same_training(tmp_path / name, tmp_path / ("dense" if name in dense else "with experts"))


@pytest.mark.long
def test_a_run_goes_on_with_other_ranks_and_layouts(stores, tmp_path):
    run = slower(run_of(stores, sparse=True))
    run.batch_size, run.checkpoint_every, run.checkpoints.keep = 6, 5, 9
    train_runs({"whole": run}, tmp_path, ranks=1)
    cut = run.model_copy(deep=True)
    cut.parallel.ep = 2
    train_runs({"moved": cut}, tmp_path, ranks=2)
    for ranks, start in ((1, 5), (3, 10)):
        for step in range(start + 5, 21, 5):
            shutil.rmtree(tmp_path / f"moved/checkpoints/step-{step}")
        shutil.copy(tmp_path / "whole.json", tmp_path / "moved.json")
        train_runs({"moved": run}, tmp_path, ranks=ranks)
        assert_same_training(tmp_path / "moved", tmp_path / "whole")


@pytest.mark.long
def test_what_else_a_run_may_be_is_the_same_on_two_ranks(stores, tmp_path):
    contrast = small.run(stores)
    contrast.objective, contrast.data.sources["text"].share = "contrastive", 0
    adafactor, muon, frozen, weighted, started = (
        run_of(stores, sparse=True),
        run_of(stores),
        run_of(stores),
        run_of(stores),
        run_of(stores, sparse=True),
    )
    adafactor.optim.kind, muon.optim.kind = "adafactor", "muon"
    frozen.frozen, weighted.loss_weighting = ["vision", "decoder"], "sample"
    frozen.data.validation = {"captions": str(stores["captions"])}
    train_runs({"dense": run_of(stores)}, tmp_path, ranks=1)
    started.start_from = {"model": str(tmp_path / "dense")}
    runs = {"contrastive": contrast, "adafactor": adafactor, "muon": muon, "frozen": frozen}
    runs |= {"weighted": weighted, "started": started}
    train_runs({f"one {name}": run for name, run in runs.items()}, tmp_path, ranks=1)
    started.parallel.ep = adafactor.parallel.ep = 2
    train_runs(runs, tmp_path, ranks=2)
    for name in runs:
        one, two = (read_metrics(tmp_path / folder) for folder in (f"one {name}", name))
        for left, right in zip(one, two, strict=True):
            for metric in {"loss", "gradient_norm", "retrieval", "sequences/text", "validation/captions"} & left.keys():
                assert right[metric] == pytest.approx(left[metric], abs=1e-4), (name, left["step"], metric)


def test_layouts_that_cannot_be_are_refused(stores, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    for change, words in {
        "parallel.dp_shard=3": "3 x 1 is 3, but there are 4 ranks",
        "parallel.tp=4": "model.decoder.heads 2 is no multiple",
        "parallel.ep=3": "4 experts are no multiple",
        "micro_batch_size=2": "must be a multiple of micro_batch_size x ranks with sequences of their own = 2 x 4",
    }.items():
        with pytest.raises(ConfigError, match=words):
            parallel_dims(config.override(run_of(stores, sparse=True), [change]))


def _disagree(rank: int, run: RunConfig) -> None:
    other = config.override(run, ["optim.weight_decay=0.2"]) if rank else run
    with dist.connected():
        with pytest.raises(ConfigError, match=r"rank 1 has optim.weight_decay = 0.2, rank 0 has 0.1"):
            coordinator.check_same_start(other, 4)
        with pytest.raises(ConfigError, match=r"rank 0 found step 4, rank 1 found no checkpoint"):
            coordinator.check_same_start(run, None if rank else 4)
        coordinator.check_same_start(run, 4)
        here = coordinator.Coordinator(data_rank=rank)
        with pytest.raises(dist.RankError, match="rank 1 is about to do step 8 in 0 micro-batches, rank 0 step 7"):
            here.total_weight(6 + rank, [], weight=10)
        with pytest.raises(dist.RankError, match="rank 1 has other sequences"):
            coordinator.Coordinator().total_weight(6, [], weight=10 + rank)
        assert here.total_weight(6, [], weight=10 + rank) == 21


def test_ranks_that_disagree_are_named_before_they_wait_for_each_other(stores):
    pair = Pair(_disagree, small.run(stores))
    assert pair.end() == [0, 0], pair.messages()


def _come_late(rank: int, report: Path) -> None:
    import time

    coordinator.PATIENCE = 1.0
    sys.stdout = report.with_suffix(f".{rank}").open("w", buffering=1)
    with dist.connected():
        here = coordinator.Coordinator(data_rank=rank)
        with here.running():
            here.enter("waiting for data", 3)
            time.sleep(4 * rank)
            here.total_weight(2, [], weight=1)


def test_a_rank_that_hangs_is_reported_by_those_that_wait(tmp_path):
    pair = Pair(_come_late, tmp_path / "report")
    assert pair.end() == [0, 0], pair.messages()
    report = (tmp_path / "report.0").read_text()
    assert "rank 0: step 3, agreeing, for" in report
    assert "rank 1: step 3, waiting for data, for" in report

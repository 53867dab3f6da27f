"""Kills, signals, full disks and lost folders cost a run on two ranks the steps since a checkpoint, no more."""

import random
import resource
import signal
import time
from pathlib import Path

import fsspec
import pytest
import small
import torch
from pair import Pair, train_all

from mm1 import checkpoint
from mm1.checkpoint import CheckpointError
from mm1.config import run as config
from mm1.config.run import RunConfig
from mm1.train.log import read_metrics
from mm1.train.run import train_run


@pytest.fixture
def run(stores) -> RunConfig:
    on_two_ranks = small.run(stores)
    on_two_ranks.micro_batch_size, on_two_ranks.steps = 1, 30
    return on_two_ranks


def start(run: RunConfig, folder: Path) -> Pair:
    recorded = folder.with_suffix(".json")
    config.save(run, recorded)
    return Pair(train_all, [(recorded, folder)])


def steps_done(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def log_file(folder: Path) -> int | None:
    """The identity of the run's log file: a resumed run writes a new one."""
    path = folder / "metrics.jsonl"
    return path.stat().st_ino if path.exists() else None


def wait_for(folder: Path, step: int, pair: Pair, *, before: int | None = None) -> bool:
    """Whether the run reached a step before it ended; `before` is the log file of the previous start."""
    while pair.processes[0].is_alive() and pair.processes[1].is_alive():
        if log_file(folder) != before and steps_done(folder) >= step:
            return True
        time.sleep(0.005)
    return False


def assert_same_end(run: RunConfig, killed: Path, whole: Path) -> None:
    """Both folders have all steps, and weights that are equal bit for bit."""
    assert [record["step"] for record in read_metrics(killed)] == list(range(1, run.steps + 1))
    ours, theirs = (checkpoint.load_for_use(folder).model.state_dict() for folder in (killed, whole))
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def trained(run: RunConfig, folder: Path) -> Path:
    pair = start(run, folder)
    assert pair.end() == [0, 0], pair.messages()
    return folder


def test_a_killed_rank_ends_the_other_and_the_run_goes_on_after_sigterm_and_kills(run, tmp_path):
    whole, killed = trained(run, tmp_path / "whole"), tmp_path / "killed"
    one = start(run, killed)
    assert wait_for(killed, 5, one)
    one.kill(1)
    assert one.end(60)[0] == 2  # by itself
    stopped = start(run, killed)
    assert wait_for(killed, 11, stopped)
    stopped.kill(0, signal.SIGTERM)  # one node is taken away; all save
    assert stopped.end(60) == [143, 143], stopped.messages()
    latest = checkpoint.latest(killed)
    assert latest is not None
    assert latest.step == steps_done(killed)
    everyone = start(run, killed)
    assert wait_for(killed, latest.step + 5, everyone)
    everyone.kill(0)
    everyone.kill(1)
    everyone.end()
    trained(run, killed)
    assert_same_end(run, killed, whole)


@pytest.mark.nightly
def test_twenty_random_kills_change_nothing(run, tmp_path):
    run.steps, run.model.decoder.layers = 80, 1  # nearly all of the time is spent starting
    whole, killed = trained(run, tmp_path / "whole"), tmp_path / "killed"
    chance = random.Random("kills")
    for number in range(20):
        latest = checkpoint.latest(killed) if killed.exists() else None
        before, pair = log_file(killed), start(run, killed)
        if number % 7 == 6:
            time.sleep(chance.random())
            victims = (0, 1)  # while they start
        else:
            step = (latest.step if latest else 0) + chance.randint(1, 3)
            assert wait_for(killed, step, pair, before=before), pair.messages()
            time.sleep(chance.random() / 10)  # in a step, or in the background's checkpoint
            victims = chance.choice([(0,), (1,), (0, 1)])
        politely = number % 5 == 4
        for rank in victims:
            pair.kill(rank, signal.SIGTERM if politely else signal.SIGKILL)
        for rank, code in enumerate(pair.end(60)):  # who was not killed ends by itself
            expected = 143 if politely else -signal.SIGKILL if rank in victims else 2
            assert code == expected, (number, victims, rank, pair.messages())
    trained(run, killed)
    assert_same_end(run, killed, whole)


def _killed_while_writing(rank: int, recorded: Path, folder: Path) -> None:
    """Kill rank 1 after it has written its shards of step 6 and before rank 0 has written `whole.json`."""
    digests = checkpoint._digests

    def gone(part: str, *, rank: int) -> dict[str, str]:
        if rank == 1 and part.endswith("step-6.part"):
            signal.raise_signal(signal.SIGKILL)
        return digests(part, rank=rank)

    checkpoint._digests = gone
    train_all(rank, [(recorded, folder)])


def _with_a_full_disk(rank: int, recorded: Path, folder: Path) -> None:
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    train_all(rank, [(recorded, folder)])


@pytest.mark.long
def test_a_checkpoint_that_a_kill_or_a_full_disk_cut_short_is_no_checkpoint(run, tmp_path):
    run.steps = 8
    whole, killed = trained(run, tmp_path / "whole"), tmp_path / "killed"
    config.save(run, tmp_path / "killed.json")
    pair = Pair(_with_a_full_disk, tmp_path / "killed.json", killed)
    assert pair.end(60) == [2, 2]
    assert all("CheckpointError" in line and "same command" in line for line in pair.messages())
    assert checkpoint.latest(killed) is None
    pair = Pair(_killed_while_writing, tmp_path / "killed.json", killed)
    assert pair.end(60)[1] == -signal.SIGKILL
    latest = checkpoint.latest(killed)
    assert latest is not None
    assert latest.step == 4
    trained(run, killed)
    assert_same_end(run, killed, whole)


def test_a_flipped_byte_of_any_ranks_shard_is_found_by_all(run, tmp_path):
    run.steps = 8
    whole = trained(run, tmp_path / "whole")
    for name in ("__0_0.distcp", "__1_0.distcp", ".metadata"):
        path = whole / "checkpoints/step-8" / name
        before = path.read_bytes()
        path.write_bytes(before[:99] + bytes([before[99] ^ 1]) + before[100:])
        latest = checkpoint.latest(whole)
        assert latest is not None
        assert latest.step == 6
        path.write_bytes(before)


def test_milestones_stay(run, tmp_path):
    run.steps = 8
    run.checkpoints.keep, run.checkpoints.milestone_every = 1, 4
    train_run(run, tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-4", "step-8"]


@pytest.mark.parametrize("background", [True, False])
def test_checkpoints_in_an_object_store_are_found_when_the_folder_is_lost(run, tmp_path, background):
    run.steps = 6
    run.checkpoints.folder, run.checkpoints.background = f"memory://{tmp_path.name}/checkpoints", background
    train_run(run, tmp_path / "first")
    assert not (tmp_path / "first/checkpoints").exists()
    files = fsspec.filesystem("memory")
    shard = next(name for name in files.glob(f"/{tmp_path.name}/checkpoints/step-6/*.distcp"))
    data = bytearray(files.cat_file(shard))
    data[len(data) // 2] ^= 1
    files.pipe_file(shard, bytes(data))
    train_run(run, tmp_path / "second")  # from step 4, with nothing on its disk
    assert [record["step"] for record in read_metrics(tmp_path / "second")] == [5, 6]
    assert checkpoint.load_for_use(tmp_path / "second").step == 6


@pytest.mark.long
def test_two_ranks_share_an_object_store(run, tmp_path):
    run.steps = 4
    whole = trained(run, tmp_path / "whole")
    run.checkpoints.folder = f"file://{tmp_path}/bucket"
    trained(run, tmp_path / "run")
    assert_same_end(run, tmp_path / "run", whole)
    assert sorted(path.name for path in (tmp_path / "bucket").iterdir()) == ["step-2", "step-4"]


def test_a_failure_of_the_background_is_reported(run, tmp_path, monkeypatch):
    monkeypatch.setattr("mm1.checkpoint._finish", lambda *arguments: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(CheckpointError, match=r"step 2 could not be written .*no space"):
        train_run(run, tmp_path)

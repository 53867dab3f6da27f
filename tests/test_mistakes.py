"""Mistakes and accidents never cost a run its folder, its checkpoints or its counts."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small
import torch

from mm1 import checkpoint
from mm1.checkpoint import CheckpointError
from mm1.config import run as config
from mm1.config.base import ConfigError
from mm1.config.run import RunConfig
from mm1.data.image import load
from mm1.data.store import StoreError
from mm1.train.log import read_metrics
from mm1.train.run import train_run


@pytest.fixture
def run(stores) -> RunConfig:
    return small.run(stores)


def mm1(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "mm1", *map(str, words)]


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.partition("-")[2]) for path in (folder / "checkpoints").iterdir())


def test_a_mistaken_first_command_does_not_claim_the_folder(run, tmp_path):
    lost, unfit, unstarted = (run.model_copy(deep=True) for _ in range(3))
    lost.data.sources["text"].store = "nowhere"
    unfit.model.decoder.vocabulary = 9
    unstarted.start_from = {"decoder": str(tmp_path / "nowhere")}
    for mistaken, error in ((lost, StoreError), (unfit, ConfigError), (unstarted, CheckpointError)):
        with pytest.raises(error):
            train_run(mistaken, tmp_path / "run")
    run.steps = 2
    assert steps(train_run(run, tmp_path / "run")) == [2]


def test_a_mistaken_validation_store_is_named_before_the_first_step(run, tmp_path):
    run.data.validation = {"captions": "nowhere"}
    with pytest.raises(StoreError, match="nowhere"):
        train_run(run, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()
    with pytest.raises(ConfigError, match="validation_sequences"):
        config.override(run, ["validation_sequences=0"])


def test_torn_checkpoints_give_way_to_those_of_a_run_that_begins_again(run, tmp_path):
    train_run(run, tmp_path)
    for path in (tmp_path / "checkpoints").iterdir():
        (path / "whole.json").unlink()
    run = config.override(config.load(tmp_path / "config.json"), ["steps=4"])
    config.save(run, tmp_path / "config.json")
    train_run(run, tmp_path)
    assert steps(tmp_path) == [2, 4]


def test_a_folder_that_a_user_put_beside_the_checkpoints_is_left_alone(run, tmp_path):
    run.steps = 2
    train_run(run, tmp_path)
    (tmp_path / "checkpoints/step-2.bak").mkdir()
    latest = checkpoint.latest(tmp_path)
    assert latest is not None
    assert latest.step == 2


def test_broken_pictures_are_counted_over_a_stop(run, tmp_path, monkeypatch):
    monkeypatch.setattr("mm1.data.loader.load_tiles", lambda image, cuts, *, size, out: load(b"not an image", size))
    train_run(run, tmp_path)
    whole = [record["broken_images"] for record in read_metrics(tmp_path)]
    shutil.rmtree(tmp_path / "checkpoints/step-8")
    train_run(run, tmp_path)
    assert [record["broken_images"] for record in read_metrics(tmp_path)] == whole
    assert whole[5] > 0


def test_a_loss_that_is_not_finite_is_one_line_on_the_command_line(run, tmp_path):
    run.optim.learning_rate = run.optim.clip_norm = 1e30
    config.save(run, tmp_path / "run.json")
    result = subprocess.run(mm1("train", tmp_path / "run.json", "--to", tmp_path / "a"), capture_output=True, text=True)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: step ")
    assert f"mm1 show {tmp_path / 'a'} --sequence " in result.stderr


def test_ctrl_c_says_that_the_same_command_continues(run, tmp_path):
    run.steps = 10_000
    config.save(run, tmp_path / "run.json")
    command = mm1("train", tmp_path / "run.json", "--to", tmp_path / "a")
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background would ignore it
    )
    try:
        deadline = time.monotonic() + 120
        while not checkpoint.latest(tmp_path / "a"):
            assert process.poll() is None, "the run ended before it could be stopped"
            assert time.monotonic() < deadline, "no checkpoint within two minutes"
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "the same command continues" in errors
    assert "Traceback" not in errors


def test_a_run_goes_on_with_other_workers(run, tmp_path):
    train_run(run, tmp_path)
    whole = checkpoint.load_for_use(tmp_path).model.state_dict()
    shutil.rmtree(tmp_path / "checkpoints/step-8")
    run.data.workers = 1
    train_run(run, tmp_path)
    for name, tensor in checkpoint.load_for_use(tmp_path).model.state_dict().items():
        assert torch.equal(tensor, whole[name]), name

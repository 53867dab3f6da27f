"""The loop and its checkpoints: accumulation, resume, kill, full disk, broken files, frozen parts."""

import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import small
import torch

from mm1 import checkpoint
from mm1.checkpoint import CheckpointError
from mm1.config import run as config
from mm1.config.base import ConfigError
from mm1.config.model import SparseConfig
from mm1.config.run import RunConfig, Stage
from mm1.data.image import load_tiles
from mm1.data.loader import Sequences
from mm1.data.tiles import tile_spec
from mm1.document import Image
from mm1.model.mllm import MLLM
from mm1.objectives.loss import Loss
from mm1.objectives.next_token import NextToken
from mm1.tiling import Cut
from mm1.train import loop
from mm1.train.compilation import compile_blocks, missing_compiler
from mm1.train.log import read_metrics
from mm1.train.run import train_run


@pytest.fixture
def run(stores) -> RunConfig:
    return small.run(stores)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_for_use(folder).model.state_dict()


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def gradients(run: RunConfig, micro_batch_size: int) -> tuple[Loss, list[torch.Tensor]]:
    sequences = Sequences(run.data, tile=tile_spec(run.model), seed=0, batch_size=12)
    run.model.image_token_id = sequences.tokenizer.image
    model = MLLM(run.model)
    model.initialise(0)
    objective = NextToken(model, sequences.names)
    batches = [sequences.batch(list(range(first, first + micro_batch_size))) for first in range(0, 4, micro_batch_size)]
    weight = sum(objective.weight(batch) for batch in batches)
    losses = []
    for batch in batches:
        losses.append(objective.loss(batch))
        (losses[-1].total / weight).backward()
    return Loss.sum([loss.detach() for loss in losses]), [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_accumulated_micro_batches_equal_one_big_batch(run, micro_batch_size):
    whole, whole_gradients = gradients(run, 4)
    parts, parts_gradients = gradients(run, micro_batch_size)
    assert parts.weight == whole.weight
    torch.testing.assert_close(parts.total, whole.total)
    torch.testing.assert_close(parts.by_source, whole.by_source)
    for ours, theirs in zip(parts_gradients, whole_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_the_losses_of_the_sources_add_up_to_the_loss(run):
    loss, _ = gradients(run, 2)
    torch.testing.assert_close(loss.by_source.sum(), loss.total)
    assert int(loss.weight_by_source.sum()) == loss.weight


def test_a_stopped_run_continues_bit_for_bit(run, tmp_path, monkeypatch):
    train_run(run, tmp_path / "whole")

    def stop_at_step_five(*arguments, **keywords):
        if arguments[1] == 6:
            raise KeyboardInterrupt
        return save(*arguments, **keywords)

    save = checkpoint.Saver.save
    monkeypatch.setattr(checkpoint.Saver, "save", stop_at_step_five)
    with pytest.raises(KeyboardInterrupt):
        train_run(run, tmp_path / "stopped")
    monkeypatch.undo()
    monkeypatch.delattr(MLLM, "initialise")  # weights are read, so none are drawn
    train_run(run, tmp_path / "stopped")
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    assert [m["step"] for m in read_metrics(tmp_path / "stopped")] == list(range(1, 9))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_checkpoint_in_the_background_holds_the_state_of_its_step(tmp_path, monkeypatch, device):
    monkeypatch.setattr(checkpoint.dist, "device", lambda: torch.device(device))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # needs a GPU
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    saver = checkpoint.Saver(tmp_path, checkpoint.CheckpointConfig(keep=3))
    for step in (1, 2, 3):
        model.weight.data.fill_(step)
        saver.save(step, model, optimizer)
        model.weight.data.fill_(-1)
    saver.wait()
    for saved in checkpoint._all(str(tmp_path / "checkpoints")):
        checkpoint.resume(saved, model, optimizer)
        assert (model.weight == saved.step).all()


def test_a_run_killed_by_force_continues_to_the_same_weights(run, tmp_path):
    folder, recorded = tmp_path / "killed", tmp_path / "run.json"
    run.steps = 40
    run.data.workers = 1
    run.data.curriculum = [Stage(step=9, shares={"captions": 1, "text": 3}), Stage(step=21, shares={"captions": 1})]
    config.save(run, recorded)
    train_run(run, tmp_path / "whole")
    command = [sys.executable, "-m", "mm1", "train", str(recorded), "--to", str(folder)]
    for least in (3, 17):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        wait_for_step(folder, least, process)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=20)  # to the end of the pipe: its workers and their server are gone too
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert_same(weights(tmp_path / "whole"), weights(folder))


def wait_for_step(folder: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        if (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").read_text().count("\n") >= step:
            return
        time.sleep(0.01)
    pytest.fail(f"no step {step} within two minutes")


def test_a_full_disk_stops_with_a_clear_line_and_loses_nothing(run, tmp_path):
    folder, recorded = tmp_path / "full", tmp_path / "run.json"
    run.steps = 4
    config.save(run.model_copy(update={"steps": 4}), recorded)
    command = [sys.executable, "-m", "mm1", "train", str(recorded), "--to", str(folder)]
    refused = subprocess.run(command, capture_output=True, text=True, preexec_fn=_no_large_files)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert "could not be written" in refused.stderr
    assert "same command" in refused.stderr
    assert not list((folder / "checkpoints").glob("*"))
    subprocess.run(command, check=True, capture_output=True)
    train_run(run, tmp_path / "whole")
    assert_same(weights(tmp_path / "whole"), weights(folder))


def _no_large_files() -> None:
    """As a full disk does it: writes past 200 kB fail, in the middle of a checkpoint."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


def test_a_flipped_byte_is_found_and_the_checkpoint_before_is_used(run, tmp_path):
    train_run(run, tmp_path)
    latest = checkpoint.latest(tmp_path)
    assert latest is not None
    assert latest.step == 8
    shard = next(latest.path.glob("*.distcp"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    before = checkpoint.latest(tmp_path)
    assert before is not None
    assert before.step == 6
    expected = weights(tmp_path)
    train_run(run, tmp_path)  # repeats steps 7 and 8
    healed = checkpoint.latest(tmp_path)
    assert healed is not None
    assert healed.step == 8
    assert not all(torch.equal(a, b) for a, b in zip(expected.values(), weights(tmp_path).values(), strict=True))


def test_an_unfinished_checkpoint_is_never_seen(run, tmp_path):
    train_run(run, tmp_path)
    shutil.copytree(tmp_path / "checkpoints/step-8", tmp_path / "checkpoints/step-9.part")
    latest = checkpoint.latest(tmp_path)
    assert latest is not None
    assert latest.step == 8


def test_a_folder_of_another_run_is_refused_with_the_difference(run, tmp_path):
    train_run(run, tmp_path)
    run.seed = 7
    with pytest.raises(ConfigError, match="seed: 0 there, 7 now"):
        train_run(run, tmp_path)


def test_frozen_parts_do_not_move_and_the_others_do(run, tmp_path):
    run.frozen = ["vision", "decoder"]
    train_run(run, tmp_path)
    model = MLLM(run.model)
    model.initialise(run.seed)
    before = model.state_dict()
    moved = {
        name.partition(".")[0] for name, value in weights(tmp_path).items() if not torch.equal(value, before[name])
    }
    assert moved == {"connector"}


def test_a_part_of_another_shape_is_refused_by_name(run, tmp_path):
    train_run(run, tmp_path / "first")
    other = run.model_copy(deep=True)
    other.model.decoder.layers = 3
    other.start_from = {"decoder": str(tmp_path / "first")}
    with pytest.raises(CheckpointError, match=r"blocks\.2.* nothing there"):
        train_run(other, tmp_path / "second")


def test_a_part_started_from_a_run_has_its_weights(run, tmp_path):
    train_run(run, tmp_path / "first")
    other = run.model_copy(update={"seed": 5, "steps": 1, "frozen": ["vision", "decoder"]})
    other.start_from = {"decoder": str(tmp_path / "first")}
    train_run(other, tmp_path / "second")
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert all(torch.equal(first[name], second[name]) for name in first if name.startswith("decoder."))
    assert not torch.equal(first["vision.patch.weight"], second["vision.patch.weight"])


@pytest.mark.parametrize("class_token", [False, True])
def test_a_start_at_a_higher_resolution_sees_what_the_first_model_sees_there(run, tmp_path, class_token):
    run.model.vision.class_token = class_token
    run.steps = 1
    train_run(run, tmp_path / "first")
    first = checkpoint.load_for_use(tmp_path / "first").model.vision
    run.model.vision.image_size *= 2
    second = MLLM(run.model)
    checkpoint.load_part(tmp_path / "first", second)
    images_NCYX = torch.randint(0, 256, (2, 3, run.model.vision.image_size, run.model.vision.image_size)).byte()
    torch.testing.assert_close(second.vision(images_NCYX), first(images_NCYX))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_sequence(run, tmp_path, monkeypatch):
    run.optim.learning_rate = 1e30
    run.optim.clip_norm = 1e30
    with pytest.raises(FloatingPointError, match=f"mm1 show {tmp_path} --sequence "):
        train_run(run, tmp_path)


def test_a_thousandth_broken_image_stops_the_run(run, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "MAX_BROKEN", 3)
    monkeypatch.setattr("mm1.data.loader.load_tiles", _broken)
    with pytest.raises(ValueError, match="3 images of this run could not be decoded, the last captions: caption-"):
        train_run(run, tmp_path)


def _broken(image: Image, cuts: Sequence[Cut], **more):
    return load_tiles(Image(b"not an image"), cuts, **more)


@pytest.mark.nightly  # minutes of a C++ compiler; test_compilation compares the same graphs without it
@pytest.mark.skipif(missing_compiler(torch.device("cpu")) is not None, reason="no C++ compiler on this machine")
def test_compiled_blocks_learn_what_plain_ones_learn(run, tmp_path):
    run.steps = 2
    run.model.decoder.sparse = SparseConfig(
        experts=4, every=2, load_balance_weight=0.01
    )  # a dense block and a sparse one
    train_run(run, tmp_path / "plain")
    train_run(run.model_copy(update={"compile": "always"}), tmp_path / "compiled")
    plain, compiled = (list(read_metrics(tmp_path / name)) for name in ("plain", "compiled"))
    for left, right in zip(plain, compiled, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)


def test_without_a_compiler_auto_goes_on_and_always_says_what_is_missing(run, monkeypatch, caplog):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    compile_blocks(MLLM(run.model), "auto", device=torch.device("cuda"))
    assert "triton is missing" in caplog.text
    with pytest.raises(ConfigError, match=r"compile=always needs a C\+\+ compiler"):
        compile_blocks(MLLM(run.model), "always", device=torch.device("cpu"))


def test_a_sparse_run_starts_from_a_dense_one_logs_its_experts_and_resumes(run, tmp_path):
    run.steps = 2
    train_run(run, tmp_path / "dense")
    sparse = run.model_copy(deep=True)
    sparse.model.decoder.sparse = SparseConfig(experts=4, every=2, load_balance_weight=0.01, router_z_weight=0.001)
    sparse.start_from = {"model": str(tmp_path / "dense")}
    sparse.optim.learning_rate, dense = 0.0, run.model_copy(deep=True)
    dense.optim.learning_rate, dense.start_from = 0.0, sparse.start_from
    for name, one in (("more", dense), ("sparse", sparse)):
        train_run(one, tmp_path / name)
    more, logged = (list(read_metrics(tmp_path / name)) for name in ("more", "sparse"))
    for left, right in zip(more, logged, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)
        assert 1 <= right["experts/balance"] <= 4
        assert right["experts/dropped"] == 0
        assert "experts/balance" not in left
    sparse.start_from = {"decoder": str(tmp_path / "sparse")}  # of the same shape: nothing to upcycle
    train_run(sparse, tmp_path / "again")
    ours, theirs = weights(tmp_path / "again"), weights(tmp_path / "sparse")
    assert all(torch.equal(ours[name], x) for name, x in theirs.items() if name.startswith("decoder."))


def test_micro_batches_do_not_change_the_step_of_a_sparse_run(run, tmp_path):
    run.steps = 1
    run.model.decoder.sparse = SparseConfig(experts=4, every=2, load_balance_weight=1.0, router_z_weight=1.0)
    norms = []
    for micro_batch_size in (1, 2, 4):
        run.micro_batch_size = micro_batch_size
        train_run(run, tmp_path / str(micro_batch_size))
        norms.append(next(iter(read_metrics(tmp_path / str(micro_batch_size))))["gradient_norm"])
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-5)

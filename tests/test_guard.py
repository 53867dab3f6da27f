"""Bad steps: skipped, gone back from, stopped at; and stops in between change nothing."""

import json
import math
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
import small
import torch

from mm1 import checkpoint
from mm1.config.run import RunConfig, Stage
from mm1.objectives.next_token import NextToken
from mm1.train import guard
from mm1.train import run as trained
from mm1.train.guard import Guard, Spike, Verdict, read_spikes
from mm1.train.log import read_metrics
from mm1.train.run import train_run


@pytest.fixture
def run(stores) -> RunConfig:
    """A run that looks for spikes and saves every third step."""
    guarded = small.run(stores)
    guarded.optim.learning_rate, guarded.steps, guarded.checkpoint_every, guarded.health_every = 1e-3, 16, 3, 0
    guarded.guard.window, guarded.guard.spike = 8, 30.0
    return guarded


@pytest.fixture
def spoil(monkeypatch):
    """A function that sets factors of losses by step (from 1), for whenever the sequences of that step come."""
    factors: dict[int, float] = {}
    now = {"step": 0}
    stream, loss = trained.batches, NextToken.loss

    def batches(sequences, *, start_sequence, batch_size, **fields):
        for step, micro_batches in enumerate(
            stream(sequences, start_sequence=start_sequence, batch_size=batch_size, **fields)
        ):
            now["step"] = start_sequence // batch_size + step + 1
            yield micro_batches

    def spoiled(self, batch):
        spoiled = loss(self, batch)
        spoiled.total = spoiled.total * factors.get(now["step"], 1.0)
        return spoiled

    monkeypatch.setattr(trained, "batches", batches)
    monkeypatch.setattr(NextToken, "loss", spoiled)
    return factors.update


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_for_use(folder).model.state_dict()


def assert_same(left: Path, right: Path) -> None:
    ours, theirs = weights(left), weights(right)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    moments = [x for values in optimizer.state.values() for x in values.values()]
    return [x.detach().clone() for x in (*model.state_dict().values(), *moments)]


def test_a_step_that_is_not_finite_moves_nothing_and_the_run_goes_on(run, tmp_path, spoil, monkeypatch, capsys):
    spoil({3: math.nan, 7: math.inf})
    states: list[list[torch.Tensor]] = []
    build, judge = trained._build_learner, Guard.judge
    learners = []
    monkeypatch.setattr(
        trained, "_build_learner", lambda *words, **fields: learners.append(build(*words, **fields)) or learners[0]
    )

    def watched(self, step, **numbers):
        states.append(state(learners[0].objective.model, learners[0].optimizer))
        return judge(self, step, **numbers)

    monkeypatch.setattr(Guard, "judge", watched)
    train_run(run, tmp_path)
    moved = [not all(map(torch.equal, *pair)) for pair in pairwise(states[1:])]  # by steps 2 to 15
    assert [step for step, is_moved in enumerate(moved, start=2) if not is_moved] == [3, 7]
    records = read_metrics(tmp_path)
    assert [record["step"] for record in records] == list(range(1, 17))
    assert [record["step"] for record in records if "skipped" in record] == [3, 7]
    assert "loss" not in records[2]
    assert "step 3: loss nan" in capsys.readouterr().out
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # NaN and Infinity are no JSON


def test_steps_in_a_row_that_are_not_finite_stop_the_run_before_they_are_saved(run, tmp_path, spoil):
    run.checkpoint_every = 1
    spoil({2: math.nan, 3: math.nan, 5: math.nan, 6: math.nan, 7: math.nan})
    with pytest.raises(FloatingPointError, match=f"step 7: loss nan.*3 steps in a row.*{tmp_path} --sequence 24"):
        train_run(run, tmp_path)
    latest = checkpoint.latest(tmp_path)
    assert latest is not None
    assert latest.step == 4


def test_a_stop_between_steps_that_are_not_finite_does_not_count_them_anew(run, tmp_path):
    run.guard.skips = 2
    assert Guard(run, tmp_path, say=print, forget=print, records=[]).judge(4, loss=1.0, norm=math.inf) is Verdict.skip
    again = Guard(run, tmp_path, say=print, forget=print, records=[{"step": 5, "loss": 1.0, "skipped": 1}])
    with pytest.raises(FloatingPointError, match="2 steps in a row"):
        again.judge(5, loss=math.nan, norm=1.0)


def test_a_spike_takes_the_run_back_and_its_sequences_are_skipped(run, tmp_path, spoil, capsys):
    spoil({13: 3.0, 14: 3.0})
    train_run(run, tmp_path / "spike")
    (spike,) = read_spikes(tmp_path / "spike")
    assert (spike.first, spike.step) == (12, 14)
    assert spike.usual < spike.limit < spike.loss
    records = read_metrics(tmp_path / "spike")
    assert [record["step"] for record in records] == list(range(1, 17))
    assert [record["step"] for record in records if "skipped" in record] == [12, 13, 14]
    assert (
        "continues from step 9" in capsys.readouterr().out
    )  # the checkpoint of step 12 has the update that caused the spike
    warned = tmp_path / "warned"  # the same run with the spike on record from the start
    warned.mkdir()
    (warned / "rewinds.jsonl").write_text((tmp_path / "spike/rewinds.jsonl").read_text())
    train_run(run, warned)
    assert_same(tmp_path / "spike", warned)


@pytest.mark.long
def test_a_stop_or_a_kill_around_a_spike_changes_nothing(run, tmp_path, spoil, monkeypatch):
    spoil({13: 3.0, 14: 3.0})
    train_run(run, tmp_path / "whole")

    def killed(*arguments, **fields):
        raise KeyboardInterrupt

    save = checkpoint.Saver.save
    for name, module, function, stop in (
        ("before", checkpoint.Saver, "save", lambda run, at, *rest: killed() if at == 9 else save(run, at, *rest)),
        ("between", guard, "asdict", killed),  # later checkpoints are gone, the spike is not on record
        ("after", checkpoint.Saver, "save", lambda run, at, *rest: killed() if at == 15 else save(run, at, *rest)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, function, stop)
            with pytest.raises(KeyboardInterrupt):
                train_run(run, tmp_path / name)
        train_run(run, tmp_path / name)
        assert read_spikes(tmp_path / name) == read_spikes(tmp_path / "whole")
        assert_same(tmp_path / "whole", tmp_path / name)


def test_without_the_field_a_spike_is_learned_from(run, tmp_path, spoil):
    spoil({13: 3.0, 14: 3.0})
    run.guard.spike = None
    train_run(run, tmp_path)
    assert read_spikes(tmp_path) == []
    assert not any("skipped" in record for record in read_metrics(tmp_path))


def test_one_hard_step_is_no_spike(run, tmp_path, spoil):
    spoil({13: 3.0, 15: 3.0})
    train_run(run, tmp_path)
    assert read_spikes(tmp_path) == []


def test_spikes_without_end_stop_the_run(run, tmp_path, spoil):
    spoil(dict.fromkeys(range(10, 17), 3.0))
    run.guard.rewinds = 2
    with pytest.raises(FloatingPointError, match=r"number 3; guard.rewinds is 2.*--sequence "):
        train_run(run, tmp_path)
    assert len(read_spikes(tmp_path)) == 2


def judged(run: RunConfig, folder: Path, losses: list[float]) -> list[Verdict]:
    judge = Guard(run, folder, say=print, forget=print, records=[])
    return [judge.judge(step, loss=loss, norm=1.0) for step, loss in enumerate(losses)]


def test_the_limit_is_robust_so_one_high_loss_does_not_raise_it(run, tmp_path):
    run.guard.spike, run.guard.spike_steps = 5.0, 1
    usual = [2.0, 2.1, 1.9, 2.0, 2.2, 1.8, 2.0, 2.0]  # deviations 0, .1, .1, 0, .2, .2, 0, 0: their median is 0.05
    limit = 2.0 + 5 * 1.4826 * 0.05
    assert judged(run, tmp_path / "a", [*usual, limit - 1e-9])[-1] is Verdict.learn
    (tmp_path / "b").mkdir()
    assert judged(run, tmp_path / "b", [*usual, limit + 1e-9])[-1] is Verdict.rewind
    assert judged(run, tmp_path / "c", [*usual[:-1], 9.0])[-1] is Verdict.learn  # the window is not full yet
    run.guard.spike_steps = 2
    assert judged(run, tmp_path / "d", [*usual, 9.0, 2.0, 9.0, 2.0]) == [Verdict.learn] * 12


def test_a_start_in_the_middle_knows_what_was_usual(run, tmp_path):
    records = [{"step": step, "loss": 2.0 + step % 3 / 10, "gradient_norm": 1.0} for step in range(1, 9)]
    again = Guard(
        run, tmp_path, say=print, forget=print, records=[*records, {"step": 9, "loss": 9.0, "gradient_norm": 1.0}]
    )
    assert not again.sound
    assert again.judge(9, loss=9.0, norm=1.0) is Verdict.rewind


def test_a_new_mix_has_a_new_usual_loss(run, tmp_path):
    run.guard.spike, run.guard.spike_steps = 5.0, 1
    run.data.curriculum = [Stage(step=8, shares={"captions": 1})]
    assert set(judged(run, tmp_path, [2.0, 2.1, 1.9, 2.0, 2.2, 1.8, 2.0, 2.0, 6.0, 6.1])) == {Verdict.learn}


def test_a_spike_on_record_is_skipped(run, tmp_path):
    run.guard.spike_steps = 1
    (tmp_path / "rewinds.jsonl").write_text(json.dumps(asdict(Spike(3, 2, 9.0, 2.0, 2.5))) + "\n")
    assert judged(run, tmp_path, [2.0, 2.0, math.nan, 2.0])[1:] == [Verdict.skip, Verdict.skip, Verdict.learn]
    assert Guard(run, tmp_path, say=print, forget=print, records=[{"step": 3, "skipped": 1}]).sound

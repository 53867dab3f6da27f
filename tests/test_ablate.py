"""Ablations: which runs a plan has, what arms share, what a failed or a stopped run does to the others."""

import csv
import json
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pytest
from small import run as small_run
from test_serve_load import until

from mm1.__main__ import main
from mm1.ablate import measures, runner, sweep
from mm1.ablate.costs import Cost
from mm1.ablate.plan import load_plan, make_plan, save_plan
from mm1.cluster import Runner
from mm1.config.ablation import Ablation, Arm, Evaluation, Stage
from mm1.config.base import ConfigError
from mm1.recipes.ablations.index import ABLATIONS, ablation


@pytest.fixture
def small(stores) -> Ablation:
    """A language model that two multimodal arms start from, and a third that starts from another one."""
    language, multimodal = small_run(stores), small_run(stores)
    language.data.sources = {"text": multimodal.data.sources["text"]}
    language.steps = 2
    multimodal.data.validation = {"text": str(stores["text"])}
    multimodal.start_from = {"decoder": "stage:language"}
    multimodal.steps = 4
    return Ablation(
        name="small",
        question="Does it work?",
        stages=(Stage("language", language), Stage("multimodal", multimodal, seeded=True)),
        arms=(Arm("faster", ("optim.learning_rate=0.01",)), Arm("longer", ("language:steps=3",))),
        evaluation=Evaluation(tasks=()),
    )


def test_arms_share_a_stage_exactly_if_it_is_the_same_training(small, tmp_path):
    plan = make_plan(small, tmp_path, seeds=2)
    needs = {arm.name: {plan.runs[run].needs for run in arm.runs.values()} for arm in plan.arms}
    assert needs["base"] == needs["faster"] != needs["longer"]
    assert len([one for one in plan.runs.values() if one.stage == "language"]) == 2
    assert len(plan.runs) == 3 * 2 + 2


def test_each_seed_trains_the_seeded_stages_again_and_no_others(small, tmp_path):
    plan = make_plan(small, tmp_path, seeds=3)
    assert [plan.runs[run].run.seed for run in plan.base.runs.values()] == [0, 1, 2]
    assert {one.run.seed for one in plan.runs.values() if not one.scored} == {0}


def test_an_arm_may_take_its_rate_from_a_fitted_law(small, tmp_path):
    (tmp_path / "law.json").write_text(json.dumps({"exponent": -0.5, "intercept": 0.0}))
    arm = Arm("law", (f"optim.learning_rate=law:{tmp_path}/law.json",))
    planned = make_plan(replace(small, arms=(arm,)), tmp_path, seeds=1).arms[1]
    assert planned.learning_rate == pytest.approx(planned.parameters**-0.5)


def test_a_start_that_an_arm_leaves_out_is_not_trained(small, tmp_path):
    alone = replace(small, base=Arm("base", ("start_from={}",)), arms=())
    assert [one.stage for one in make_plan(alone, tmp_path, seeds=1).runs.values()] == ["multimodal"]


def test_an_assignment_changes_all_stages_or_the_one_it_names(small, tmp_path):
    plan = make_plan(small, tmp_path, seeds=1, assignments=["batch_size=2", "multimodal:steps=7"])
    assert {one.run.batch_size for one in plan.runs.values()} == {2}
    assert sorted({(one.stage, one.run.steps) for one in plan.runs.values()}) == [
        ("language", 2),
        ("language", 3),
        ("multimodal", 7),
    ]


def test_a_plan_survives_its_file(small, tmp_path):
    plan = make_plan(small, tmp_path, seeds=2)
    save_plan(plan, tmp_path)
    assert load_plan(tmp_path) == plan


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ((Arm("a"),), "base and a are the same run"),
        ((Arm("a", ("steps=5",)), Arm("a", ("steps=6",))), "more than one arm named 'a'"),
        ((Arm("a", ("encodr:steps=5",)),), "no stage 'encodr'"),
        ((Arm("a", ("stepz=5",)),), "arm a: no field 'stepz'"),
        ((Arm("a", ('start_from={"decoder": "stage:multimodal"}',)),), "stages before it: language"),
    ],
)
def test_a_mistake_in_an_arm_is_told(small, tmp_path, arms, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(replace(small, arms=arms), tmp_path, seeds=1)


def test_more_seeds_continue_an_ablation_and_other_runs_are_refused(small, tmp_path):
    save_plan(make_plan(small, tmp_path, seeds=1), tmp_path)
    (tmp_path / "arms/base/seed-0").mkdir(parents=True)
    (tmp_path / "arms/base/seed-0/config.json").write_text("{}")
    plan = make_plan(small, tmp_path, seeds=2, assignments=["data.workers=3", "checkpoints.keep=7"])
    save_plan(plan, tmp_path)
    assert plan.runs.keys() == make_plan(small, tmp_path, seeds=2).runs.keys()
    with pytest.raises(ConfigError, match="batch_size: 4 there, 2 now"):
        save_plan(make_plan(small, tmp_path, seeds=2, assignments=["batch_size=2"]), tmp_path)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_arm_is_told_and_stops_no_other(small, tmp_path, workers):
    """Its learning rate makes the loss infinite at once."""
    arms = (Arm("broken", ("optim.learning_rate=1e38", "optim.clip_norm=1e30")), small.arms[0])
    broken = replace(small, arms=arms if workers == 1 else arms[:1])
    plan = make_plan(broken, tmp_path, seeds=1, assignments=["guard.skips=1"])
    save_plan(plan, tmp_path)
    failed = runner.run_all(plan, tmp_path, runner=Runner(workers=workers))
    assert list(failed) == ["arms/broken/seed-0"]
    assert "FloatingPointError" in failed["arms/broken/seed-0"]
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["arm"] for row in rows] == ["base", "faster"][: 3 - workers]


def test_more_runs_at_a_time_than_gpus_share_them_evenly(tmp_path, monkeypatch):
    """Whatever the order in which runs end: here both on the second GPU end first."""
    monkeypatch.setattr(runner.torch.cuda, "device_count", lambda: 2)
    ends = {name: threading.Event() for name in "abcdef"}
    seen: list[str] = []

    class Process:
        def __init__(self, command, *, env, **_):
            self.name = command[4]
            seen.append(env["CUDA_VISIBLE_DEVICES"])

        def wait(self):
            return 0 if ends[self.name].wait(60) else 1

    monkeypatch.setattr(runner.subprocess, "Popen", Process)
    workers = runner._Processes(tmp_path, 4, 0)
    with ThreadPoolExecutor(4) as pool:
        started: list[Future] = []

        def start(*names: str) -> list[str]:
            for name in names:
                started.append(pool.submit(workers.start, name))
                until(lambda: len(seen) == len(started))
            return seen[-len(names) :]

        assert start("a", "b", "c", "d") == ["0", "1", "0", "1"]
        for name in "bd":
            ends[name].set()
        until(lambda: started[1].done() and started[3].done())
        ends["a"].set()
        until(lambda: started[0].done())
        assert start("e", "f") == ["1", "0"]
        for end in ends.values():
            end.set()
    assert [each.result() for each in started] == [None] * 6


def test_what_starts_from_a_failed_stage_is_not_started(small, tmp_path):
    plan = make_plan(replace(small, arms=()), tmp_path, seeds=1, assignments=["language:data.sources.text.store=none"])
    save_plan(plan, tmp_path)
    failed = runner.run_all(plan, tmp_path, runner=Runner())
    assert "not started" in failed["arms/base/seed-0"]


def test_results_have_the_facts_of_their_arm(small, tmp_path):
    plan = make_plan(replace(small, arms=small.arms[:1]), tmp_path, seeds=2)
    save_plan(plan, tmp_path)
    assert not runner.run_all(plan, tmp_path, runner=Runner())
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert tuple(rows[0]) == measures.COLUMNS
    assert [(row["arm"], row["seed"], row["measure"]) for row in rows] == [
        (arm, seed, "loss/text") for arm in ("base", "faster") for seed in "01"
    ]
    assert {row["learning_rate"] for row in rows if row["arm"] == "faster"} == {"0.01"}
    assert len({row["value"] for row in rows}) == 4
    recorded = json.loads((tmp_path / "ablation.json").read_text())
    assert {arm["name"]: arm["parameters"] for arm in recorded["arms"]} == {
        row["arm"]: int(row["parameters"]) for row in rows
    }


def test_a_continued_ablation_predicts_nothing_and_a_new_one_says_what_it_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "run_all", lambda plan, folder, *, runner: {})
    monkeypatch.setattr(sweep, "predict", lambda plan, devices: dict.fromkeys(plan.runs, Cost(hours=0.5, memory=3e9)))
    request = sweep.Request("frozen", "tiny", seeds=1, assignments=(), folder=tmp_path)
    sweep.run_ablation(request, runner=Runner(), dry_run=False)
    said = " ".join(capsys.readouterr().out.split())
    assert "6 runs: 4 arms x 1 seeds and 2 stages" in said
    assert "180 minutes of training, at most 3.0 GB of memory" in said
    monkeypatch.setattr(sweep, "predict", lambda plan, devices: 1 / 0)
    sweep.run_ablation(request, runner=Runner(), dry_run=False)
    assert "frozen continues: 0 of 4 runs of arms are done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["frozen", "--seeds", "1"], 3, "failed: arms/both-frozen/seed-0: ValueError: no"),
        (["frozn"], 2, "no ablation 'frozn'; did you mean 'frozen'?"),
        (["frozen", "--scale", "huge"], 2, "--scale is tiny or paper; found 'huge'"),
        (["frozen", "tuning:steps=3"], 2, "no stage 'tuning' for 'tuning:steps=3'"),
        (["frozen", "--csv"], 2, "it has no ablation.json"),
    ],
)
def test_the_command_ends_with_the_code_of_what_happened(tmp_path, monkeypatch, capsys, words, code, message):
    monkeypatch.setattr(sweep, "predict", lambda plan, devices: dict.fromkeys(plan.runs, Cost(hours=0.5, memory=3e9)))
    failed = {"arms/both-frozen/seed-0": "ValueError: no"}
    monkeypatch.setattr(sweep, "run_all", lambda plan, folder, *, runner: failed)
    monkeypatch.setattr("sys.argv", ["mm1", "ablate", *words, "--to", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code
    said = capsys.readouterr()
    assert message in said.out + said.err


@pytest.mark.parametrize("scale", ["tiny", "paper"])
@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_can_be_planned_at_both_scales(name, scale, tmp_path):
    plan = make_plan(ablation(name, scale), tmp_path, seeds=3, scale=scale)
    assert plan.name == name
    assert all(arm.changes for arm in plan.arms[1:])

"""An ablation of a user's own file that is killed again and again ends like one that is not."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mm1 import checkpoint
from mm1.ablate.plan import make_plan, save_plan
from mm1.ablate.runner import run_all
from mm1.cluster import Runner
from mm1.recipes.ablations.index import ablation
from mm1.train.log import read_metrics

ROOT = Path(__file__).parents[1]
FILE = """
import small
from pathlib import Path
from mm1.config.ablation import Ablation, Arm, Evaluation, Stage

STORES = {{name: Path("{stores}") / f"{{name}}.lance" for name in ("captions", "text")}}


def mine() -> Ablation:
    language, multimodal = small.run(STORES), small.run(STORES)
    language.steps, multimodal.steps = 12, 12
    multimodal.start_from = {{"decoder": "stage:language"}}
    multimodal.data.validation = {{"text": str(STORES["text"])}}
    return Ablation(
        name="mine",
        question="Does it end the same?",
        stages=(Stage("language", language), Stage("multimodal", multimodal, seeded=True)),
        arms=(Arm("faster", ("optim.learning_rate=0.01",)),),
        evaluation=Evaluation(tasks=("captions",), shots=(0, 2), limit=4),
    )
"""


def ablate(file: Path, folder: Path, workers: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "mm1", "ablate", str(file), "--seeds", "1", "--workers", str(workers)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    return subprocess.Popen([*command, "--to", str(folder)], env=environment, stdout=subprocess.DEVNULL)


@pytest.fixture
def file(stores, tmp_path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE.format(stores=stores["text"].parent))
    return path


@pytest.mark.nightly
@pytest.mark.parametrize("workers", [1, 2])
def test_an_ablation_killed_at_ten_moments_ends_the_same(file, tmp_path, workers):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    assert ablate(file, whole, workers).wait() == 0
    seconds = time.monotonic() - began
    chance = random.Random(workers)
    for _ in range(10):
        process = ablate(file, killed, workers)
        try:
            process.wait(chance.uniform(0.3, 0.9) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert ablate(file, killed, workers).wait() == 0
    assert_same_end(whole, killed)


@pytest.mark.nightly
def test_an_ablation_on_ray_ends_like_one_in_this_process(file, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    plans = {}
    for kind in ("native", "ray"):
        folder = tmp_path / kind
        plans[kind] = make_plan(ablation(str(file), "tiny"), folder, seeds=1)
        save_plan(plans[kind], folder)
        assert not run_all(plans[kind], folder, runner=Runner(kind, workers=2 if kind == "ray" else 1))
    assert_same_end(tmp_path / "native", tmp_path / "ray")


def assert_same_end(whole: Path, killed: Path) -> None:
    """Both have the same results, and each run the same steps, losses and weights."""
    assert (killed / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    runs = sorted(path.parent.relative_to(whole) for path in whole.glob("*/**/config.json"))
    assert len(runs) == 3
    for run in runs:
        ours, theirs = (
            [(record["step"], record.get("loss")) for record in read_metrics(folder / run)]
            for folder in (killed, whole)
        )
        assert ours == theirs
        mine, other = (checkpoint.load_for_use(folder / run).model.state_dict() for folder in (killed, whole))
        assert all(torch.equal(mine[name], other[name]) for name in other)
        assert (killed / run / "report.html").is_file()

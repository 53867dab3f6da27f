"""lmms-eval's own runner asks a run what `mm1 eval` asks it, and both get the same answers. Skipped without lmms-eval.

The recipe in docs/evaluate.md says how to install it.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import small

from mm1.train.run import train_run

ROOT = Path(__file__).parents[1]
TASKS = ROOT / "docs" / "lmms_tasks.py"


@pytest.mark.nightly
@pytest.mark.skipif(importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed")
@pytest.mark.parametrize("form", ["chat", "plain"])
def test_lmms_eval_gets_the_answers_of_mm1_eval(form: str, stores: dict[str, Path], tmp_path: Path):
    run = train_run(small.run(stores), tmp_path / "run")

    def python(*words: object) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, *map(str, words)]
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert result.returncode == 0, result.stdout[-3000:]

    python(TASKS, "tasks", "--form", form)
    tasks = ("--tasks", "mm1_generate,mm1_choices", "--include_path", "tasks")
    model = ("--model", "mm1", "--model_args", f"run={run},form={form}")
    python("-m", "lmms_eval", "eval", *model, *tasks, "--log_samples", "--output_path", "tasks/theirs")
    ours = ("-m", "mm1", "eval", run, "--data", "tasks", "--form", form, "--shots", "0", "--to", "tasks/ours")
    python(*ours, "--tasks", "chartqa")
    python(*ours, "--tasks", "ai2d", "--scoring", "loglikelihood")
    python(TASKS, "tasks", "--show")

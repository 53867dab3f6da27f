"""The benchmark of a GPU runs in small on a CPU: every part gives its figures, and a part that fails stops no other."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def gpu(monkeypatch):
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("gpu")


def figures_of(output: str) -> dict[str, dict]:
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return {line["name"]: line for line in lines}


def test_all_parts_run_in_small(gpu, tmp_path: Path):
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--tiny", "--to", str(tmp_path / "figures.jsonl")]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1200)
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    figures = figures_of(answer.stdout)
    assert figures == figures_of((tmp_path / "figures.jsonl").read_text())
    for figure in figures.values():
        assert figure.keys() >= {"name", "value", "unit", "card", "torch", "date", "command"}
    for name in ("repeated gradients that differ", "resumed weights that differ"):
        assert figures[name]["value"] == 0, figures[name]
    assert figures["mm1 train: resumed losses that differ"]["value"] == 0
    assert gpu.EXPECTED.keys() <= figures.keys()
    rows = answer.stdout.partition("| figure |")[2].splitlines()[2:]
    assert len([row for row in rows if "not measured" not in row]) == len(figures)


def test_the_page_has_the_predictions_of_today(gpu):
    """Those of `mm1 budget` for the first run; the page says how to print all."""
    figures = gpu.Figures(tiny=False)
    gpu.gpu_training.predict(figures, ["dense"])
    shown = {row.rpartition(" | ")[0].rpartition(" | ")[0] for row in (ROOT / "docs/gpu.md").read_text().splitlines()}
    rows = [row.removesuffix(" | not measured |  |") for row in gpu.table(figures).splitlines() if "dense" in row]
    assert len(rows) == 5
    assert not set(rows) - shown, "see docs/gpu.md for the command that prints the table"


def test_a_part_that_fails_says_why_and_the_others_go_on(gpu, monkeypatch, capsys):
    def broken(figures):
        raise RuntimeError("the card is on fire")

    parts = {"first": (broken, 10), "second": (lambda figures: figures.add("fine", 1.0, "s"), 10)}
    monkeypatch.setattr(gpu, "PARTS", parts)
    assert not gpu.run_parts(gpu.Figures(tiny=True), list(parts))
    figures = figures_of(capsys.readouterr().out)
    assert "the card is on fire" in figures["first: FAILED"]["detail"]
    assert figures["fine"]["value"] == 1.0


def test_a_part_that_takes_too_long_is_stopped(gpu, monkeypatch, capsys):
    import time

    monkeypatch.setattr(gpu, "PARTS", {"slow": (lambda figures: time.sleep(30), 1)})
    start = time.monotonic()
    assert not gpu.run_parts(gpu.Figures(tiny=False), ["slow"])
    assert time.monotonic() - start < 10
    assert "time limit" in figures_of(capsys.readouterr().out)["slow: FAILED"]["detail"]

"""What a run says while it runs: `metrics.jsonl` always, a progress bar, boards when asked."""

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mm1 import dist
from mm1.disk import write_whole
from mm1.train.trackers import Board

console = Console(width=None if sys.stdout.isatty() else 120)

PLAIN_EVERY = 15.0
"""Seconds between lines where the output is no terminal (a log file, a CI job)."""


class RunLog:
    """The log of one run, from `start` on; a resumed run's later lines are cut off first. Only rank 0 writes."""

    def __init__(self, folder: Path, *, name: str, start: int, steps: int, boards: Sequence[Board] = ()):
        self.name, self.start, self.steps = name, start, steps
        self.folder, self._path = folder, folder / "metrics.jsonl"
        if dist.rank() == 0:
            self._keep_until(start)
        self._file = (self._path if dist.rank() == 0 else Path(os.devnull)).open("a")
        self._boards = boards
        self._said = 0.0
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=steps, completed=start, figures="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
        self._file.close()
        for board in self._boards:
            board.close()

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Record a finished step (counted from 1) and show it."""
        self._write({"step": step, **metrics})
        figures = (
            f"loss {metrics['loss']:.3f}  {metrics['tokens_per_second']:,.0f} tok/s  "
            f"{metrics['images_per_second']:,.0f} img/s  MFU {metrics['mfu']:.0%}"
        )
        self._bar.update(self._task, completed=step, figures=figures)
        if not console.is_terminal and (time.monotonic() - self._said > PLAIN_EVERY or step == self.steps):
            self._said = time.monotonic()
            left = (self.steps - step) * metrics["step_seconds"]
            console.print(
                f"{self.name}  step {step}/{self.steps}  {figures}  about {left:.0f} s left",
                highlight=False,
                soft_wrap=True,
            )

    def validation(self, step: int, metrics: dict[str, float]) -> None:
        """Record validation results after a step."""
        self._write({"step": step, **metrics})
        self.say(f"{self.name}  step {step}  " + "  ".join(f"{k} {v:.3f}" for k, v in metrics.items()))

    def say(self, line: str) -> None:
        self._bar.console.print(line, highlight=False)

    def _write(self, record: dict[str, float]) -> None:
        """Without what is not finite, for which JSON has no word."""
        finite = {name: value for name, value in record.items() if math.isfinite(value)}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        for board in self._boards:
            board.add(finite)

    def _keep_until(self, step: int) -> None:
        """Drop lines of steps that a resumed run will do again, and a torn last line."""
        if not self._path.exists():
            return
        kept = [line for line in self._path.read_text().splitlines() if _step(line) <= step]
        write_whole(self._path, "".join(line + "\n" for line in kept))


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's `metrics.jsonl`, in order; none when it is missing; torn lines are passed over."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if _step(line) < float("inf")]

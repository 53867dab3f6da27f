"""The log of a run: `metrics.jsonl` and a progress bar always, trackers if configured."""

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
from mm1.train.trackers import Tracker

console = Console(width=None if sys.stdout.isatty() else 120)

PLAIN_EVERY = 15.0
"""Seconds between progress lines where the output is not a terminal (a log file, a CI job)."""


class RunLog:
    """The log of the run in `folder`, from step `start` on: lines of later steps are removed first.

    Only rank 0 writes. The log closes the trackers on exit.
    """

    def __init__(self, folder: Path, *, start: int, steps: int, trackers: Sequence[Tracker] = ()):
        self.name, self.steps = folder.name, steps
        self._path = folder / "metrics.jsonl"
        if dist.rank() == 0:
            self._keep_until(start)
        self._file = (self._path if dist.rank() == 0 else Path(os.devnull)).open("a")
        self._trackers = trackers
        self._last_line = 0.0  # when it was printed
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(self.name, total=steps, completed=start, metrics="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
        self._file.close()
        for tracker in self._trackers:
            tracker.close()

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Record a step that is done (counted from 1) and show it."""
        self._write({"step": step, **metrics})
        shown = (
            f"loss {metrics['loss']:.3f}  {metrics['tokens_per_second']:,.0f} tok/s  "
            f"{metrics['images_per_second']:,.0f} img/s  MFU {metrics['mfu']:.0%}"
        )
        self._bar.update(self._task, completed=step, metrics=shown)
        if not console.is_terminal and (time.monotonic() - self._last_line > PLAIN_EVERY or step == self.steps):
            self._last_line = time.monotonic()
            left = (self.steps - step) * metrics["step_seconds"]
            console.print(
                f"{self.name}  step {step}/{self.steps}  {shown}  about {left:.0f} s left",
                highlight=False,
                soft_wrap=True,
            )

    def validation(self, step: int, metrics: dict[str, float]) -> None:
        """Record and show the metrics of a validation after `step` steps."""
        self._write({"step": step, **metrics})
        self.say(f"{self.name}  step {step}  " + "  ".join(f"{k} {v:.3f}" for k, v in metrics.items()))

    def say(self, line: str) -> None:
        """Print a line above the progress bar."""
        self._bar.console.print(line, highlight=False)

    def _write(self, record: dict[str, float]) -> None:
        """Write the record without infinities and NaN, which JSON doesn't have."""
        finite = {name: value for name, value in record.items() if math.isfinite(value)}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.add(finite)

    def _keep_until(self, step: int) -> None:
        """Remove the lines of later steps, which a resumed run does again, and an incomplete last line."""
        if not self._path.exists():
            return
        lines = [line for line in self._path.read_text().splitlines() if _step(line) <= step]
        write_whole(self._path, "".join(line + "\n" for line in lines))


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's `metrics.jsonl`, in order; none if it is missing. Incomplete lines are skipped."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if _step(line) < float("inf")]


def last_validation(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The last value of each validation metric in a run's records, by its name without `validation/`."""
    prefix = "validation/"
    return {name.removeprefix(prefix): record[name] for record in records for name in record if name.startswith(prefix)}

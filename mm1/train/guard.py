"""What a run does about a bad step: skip it, go back to before it, or stop.

This depends only on the losses and gradient norms of earlier steps, which `metrics.jsonl` keeps, and on earlier spikes,
which `rewinds.jsonl` keeps. So a resumed run decides as an uninterrupted one does. Losses and norms are those of the
whole step, so all ranks decide alike.
"""

import json
import math
import os
import statistics
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from mm1 import dist
from mm1.config.run import RunConfig

TO_STD = 1.4826
"""The standard deviation of a normal distribution over its median absolute deviation."""


class Verdict(Enum):
    """What to do with a step whose gradient is known."""

    learn = "learn"
    skip = "skip"  # leave weights and moments alone; the step's sequences count as done
    rewind = "rewind"  # go back to a checkpoint before the spike


@dataclass(frozen=True, slots=True)
class Spike:
    """A spike of the loss; steps are counted from 1. Steps `first` to `step` are skipped."""

    step: int  # at which it was detected
    first: int  # the step before the first loss that was too high: its update came before that loss
    loss: float
    usual: float  # the median of the window
    limit: float


class Guard:
    """Decides about the steps of a run."""

    def __init__(
        self,
        run: RunConfig,
        folder: Path,
        *,
        say: Callable[[str], None],
        forget: Callable[[int], None],
        records: Iterable[dict[str, Any]],
    ):
        """`records` are those of earlier steps; `say` prints a line; `forget(step)` removes later checkpoints."""
        self._run, self._folder, self._say, self._forget, self._settings = run, folder, say, forget, run.guard
        self._usual: deque[float] = deque(maxlen=run.guard.window)
        self._broken = self._high = 0  # steps in a row whose loss is not finite, or too high
        self._spikes = read_spikes(folder)
        self._changes = {stage.step for stage in run.data.curriculum}
        for record in records:
            if "gradient_norm" in record or "skipped" in record:
                loss, norm = record.get("loss", math.nan), record.get("gradient_norm", math.nan)
                self._note(record["step"] - 1, loss=loss, norm=norm)

    @property
    def sound(self) -> bool:
        """Whether the weights are worth saving: the last loss was finite and not too high."""
        return not self._broken and not self._high

    def judge(self, step: int, *, loss: float, norm: float) -> Verdict:
        """What to do with a step (from 0) that has this loss and gradient norm.

        Raises:
            FloatingPointError: too many steps in a row without a finite loss or gradient, or too many spikes.
        """
        if self._is_in_spike(step):
            self._say(f"step {step + 1} skipped: a spike was here")
            return Verdict.skip
        self._note(step, loss=loss, norm=norm)
        if self._broken:
            return self._skip(step, loss=loss, norm=norm)
        return self._rewind(step, loss) if self._high >= self._settings.spike_steps else Verdict.learn

    def _is_in_spike(self, step: int) -> bool:
        return any(spike.first <= step + 1 <= spike.step for spike in self._spikes)

    def _note(self, step: int, *, loss: float, norm: float) -> None:
        """Count the step, unless it belongs to a spike on record."""
        if self._is_in_spike(step):
            return
        if step in self._changes:
            self._usual.clear()  # a new mix has a new usual loss
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._broken += 1
        else:
            self._broken = 0
            self._high = self._high + 1 if loss > self._limit() else 0
            if not self._high:
                self._usual.append(loss)

    def _limit(self) -> float:
        """The highest loss that is no spike, from the median and the median absolute deviation: robust to spikes."""
        if self._settings.spike is None or len(self._usual) < self._settings.window:
            return math.inf
        middle = statistics.median(self._usual)
        std = TO_STD * statistics.median(abs(loss - middle) for loss in self._usual)
        return middle + self._settings.spike * std

    def _skip(self, step: int, *, loss: float, norm: float) -> Verdict:
        problem = f"step {step + 1}: loss {loss:.4g}, gradient norm {norm:.4g}; not finite"
        if self._broken < self._settings.skips:
            self._say(f"{problem}. Skipped ({self._broken} of {self._settings.skips} in a row)")
            return Verdict.skip
        raise FloatingPointError(
            f"{problem}, {self._broken} steps in a row. Lower optim.learning_rate or look at its first sequence: "
            f"mm1 show {self._folder} --sequence {step * self._run.batch_size}"
        )

    def _rewind(self, step: int, loss: float) -> Verdict:
        """Remove the checkpoints after the spike, then record it.

        If the run is killed in between, its next start detects the same spike again.
        """
        first = max(1, step + 1 - self._high)
        if len(self._spikes) == self._settings.rewinds:
            raise FloatingPointError(
                f"step {step + 1}: loss {loss:.4g} is the run's spike number {len(self._spikes) + 1}; guard.rewinds is "
                f"{self._settings.rewinds}. Lower optim.learning_rate, raise guard.spike, or look at its first "
                f"sequence: mm1 show {self._folder} --sequence {step * self._run.batch_size}"
            )
        spike = Spike(step + 1, first, loss, statistics.median(self._usual), self._limit())
        self._forget(first - 1)
        if dist.rank() == 0:
            with _path(self._folder).open("a") as file:
                file.write(json.dumps(asdict(spike)) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self._say(
            f"step {spike.step}: loss {loss:.4g}, usual {spike.usual:.4g}, limit {spike.limit:.4g}. Going back to the "
            f"checkpoint before step {first}; steps {first} to {spike.step} will be skipped"
        )
        return Verdict.rewind


def read_spikes(folder: Path) -> list[Spike]:
    """The spikes that the run in `folder` went back from, in order."""
    path = _path(folder)
    return [Spike(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def _path(folder: Path) -> Path:
    return folder / "rewinds.jsonl"

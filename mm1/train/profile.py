"""Traces of a few steps, to open in Perfetto or chrome://tracing."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

from mm1 import dist


class Profile:
    """Traces the steps of `window` (first and last, from 1) into `profile/` of the run's folder; none if it is None."""

    def __init__(self, folder: Path, window: tuple[int, int] | None):
        self._folder, self._window = folder / "profile", window
        self._profiler: torch.profiler.profile | None = None

    def after(self, step: int) -> None:
        """Start or end the trace if it is due after `step` steps."""
        if self._window is None:
            return
        first, last = self._window
        if step == first - 1:
            cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profiler = torch.profiler.profile(activities=[ProfilerActivity.CPU, *cuda])
            self._profiler.start()
        elif step >= last and self._profiler is not None:
            self._profiler.stop()
            self._folder.mkdir(exist_ok=True)
            name = f"steps-{first}-{last}" + (f"-rank-{dist.rank()}" if dist.world() > 1 else "")
            self._profiler.export_chrome_trace(str(self._folder / f"{name}.json.gz"))
            self._profiler = None

"""The mix of a run over its steps, as a page: the shares asked for, and those that came."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape

from mm1.config import run as config
from mm1.config.run import RunConfig
from mm1.report.figures import shares as draw_shares
from mm1.train.log import read_metrics

UNITS = {"rows": "rows", "tokens": "trained tokens", "images": "images"}
"""What a metrics record counts of each source (`sequences/NAME`), and what that is called."""


@dataclass(frozen=True, slots=True)
class StageLine:
    """A stage of the run: what was asked of a source, and what it gave."""

    first: int
    last: int
    source: str
    asked: float
    given: dict[str, float | None]  # shares by unit; None where no step was done


def show_mix_of(folder: Path) -> str:
    """The page of the run in `folder`: a drawing for rows, trained tokens and images, and a table of its stages.

    Raises:
        ConfigError: no run there.
    """
    run = config.load(folder / "config.json")
    records = [record for record in read_metrics(folder) if f"sequences/{next(iter(run.data.sources))}" in record]
    drawings = [
        draw_shares(
            unit,
            _realised(run, records, unit),
            asked=_asked(run) if unit == run.data.unit else {},
            steps=run.steps,
            what=UNITS[unit],
        )
        for unit in UNITS
    ]
    environment = Environment(
        loader=PackageLoader("mm1.report", "."), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("mix.html").render(
        name=folder.name,
        unit=UNITS[run.data.unit],
        units=UNITS,
        drawings=drawings,
        stages=stages(run, records),
        done=len(records),
        steps=run.steps,
    )


def stages(run: RunConfig, records: Sequence[dict[str, Any]]) -> list[StageLine]:
    """Each stage's sources: shares asked for in the config's unit, and given so far in every unit."""
    names, found = list(run.data.sources), []
    for stage, end in zip(run.data.stages(), _ends(run), strict=True):
        part = [record for record in records if stage.step < record["step"] <= end]
        for name in names:
            given = {unit: _share(part, unit, name=name, names=names) for unit in UNITS}
            asked = stage.shares.get(name, 0) / sum(stage.shares.values())
            found.append(StageLine(stage.step, end - 1, name, asked, given))
    return [line for line in found if line.first <= line.last]


def _share(records: Sequence[dict[str, Any]], unit: str, *, name: str, names: Sequence[str]) -> float | None:
    """The part of all rows (tokens, images) of these steps that came from a source; None when there were none."""
    counts = {source: sum(record.get(f"{unit}/{source}", 0) for record in records) for source in names}
    return counts[name] / sum(counts.values()) if sum(counts.values()) else None


def _asked(run: RunConfig) -> dict[str, list[tuple[int, float]]]:
    """For each source its share from step to step, as corners of a line."""
    corners: dict[str, list[tuple[int, float]]] = {name: [] for name in run.data.sources}
    for stage, end in zip(run.data.stages(), _ends(run), strict=True):
        for name, line in corners.items():
            share = stage.shares.get(name, 0) / sum(stage.shares.values())
            line += [(min(stage.step, end), share), (end, share)]
    return corners


def _ends(run: RunConfig) -> list[int]:
    """The step after the last of every stage; no stage goes past the run's end."""
    return [min(step, run.steps) for step in (*(stage.step for stage in run.data.curriculum), run.steps)]


def _realised(run: RunConfig, records: Sequence[dict[str, Any]], unit: str) -> dict[str, list[tuple[float, float]]]:
    """For each source its share over about sixty stretches of the run, at the middle of each."""
    names = list(run.data.sources)
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for places in np.array_split(np.arange(len(records)), min(60, len(records)) or 1):
        part = [records[place] for place in places]
        for name in names:
            share = _share(part, unit, name=name, names=names)
            if share is not None:
                curves[name].append((float(np.mean([record["step"] for record in part])) - 0.5, share))
    return curves

"""The shares of a run's sources: what the config requests, what the steps contained; and a page that compares both."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mm1.config import run as config
from mm1.config.run import RunConfig
from mm1.report.figures import shares as draw_shares
from mm1.report.templates import load_template
from mm1.train.log import read_metrics

UNITS = {"sequences": "sequences", "tokens": "trained tokens", "images": "images"}
"""What metrics count of each source, as `UNIT/SOURCE`, and its name on a page. `data.unit` is one of these."""

POINTS = 60
"""Points of a curve of shares."""


@dataclass(frozen=True, slots=True)
class SourceTotals:
    """What one source gave to a run, summed over its steps."""

    source: str
    requested: float  # share in the config, counted in the unit `data.unit`
    counts: dict[str, int]  # by unit; of a contrastive run, `tokens` counts pairs
    shares: dict[str, float]  # by unit


@dataclass(frozen=True, slots=True)
class StageShares:
    """One source in one stage of the curriculum: its requested share, and its real shares so far."""

    first: int
    last: int
    source: str
    requested: float
    realised: dict[str, float | None]  # by unit; None where no step was done


def mix_page(folder: Path) -> str:
    """The page of the run in `folder`: shares of sequences, trained tokens and images over steps, and by stage.

    Raises:
        ConfigError: no run in that folder.
    """
    run = config.load(folder / "config.json")
    records = [record for record in read_metrics(folder) if f"sequences/{next(iter(run.data.sources))}" in record]
    drawings = [
        draw_shares(
            unit,
            _realised_curves(run, records, unit),
            requested=_requested_curves(run) if unit == run.data.unit else {},
            steps=run.steps,
            what=name,
        )
        for unit, name in UNITS.items()
    ]
    return load_template("mix.html").render(
        name=folder.name,
        unit=UNITS[run.data.unit],
        units=UNITS,
        drawings=drawings,
        stages=stage_shares(run, records),
        done=len(records),
        steps=run.steps,
    )


def source_totals(run: RunConfig, records: Sequence[dict[str, Any]]) -> list[SourceTotals]:
    """The sequences, trained tokens and pictures of each source, summed over the steps, with their shares."""
    names = [*run.data.sources]
    requested = dict.fromkeys(names, 0.0)
    for stage, end in zip(run.data.stages(), _stage_ends(run), strict=True):
        for name, share in stage.shares.items():
            requested[name] += max(0, end - stage.step) / run.steps * share / sum(stage.shares.values())
    counts = {unit: _counts(records, unit, names) for unit in UNITS}
    return [
        SourceTotals(
            source=name,
            requested=requested[name],
            counts={unit: counts[unit][name] for unit in UNITS},
            shares={unit: counts[unit][name] / max(1, sum(counts[unit].values())) for unit in UNITS},
        )
        for name in names
    ]


def stage_shares(run: RunConfig, records: Sequence[dict[str, Any]]) -> list[StageShares]:
    """Every source in every stage that has steps: its requested share, and its real share in each unit."""
    names, lines = list(run.data.sources), []
    for stage, end in zip(run.data.stages(), _stage_ends(run), strict=True):
        records_of_stage = [record for record in records if stage.step < record["step"] <= end]
        shares = {unit: _shares(records_of_stage, unit, names) for unit in UNITS}
        for name in names:
            requested = stage.shares.get(name, 0) / sum(stage.shares.values())
            realised = {unit: shares[unit].get(name) for unit in UNITS}
            lines.append(StageShares(stage.step, end - 1, name, requested, realised))
    return [line for line in lines if line.first <= line.last]


def _counts(records: Sequence[dict[str, Any]], unit: str, names: Sequence[str]) -> dict[str, int]:
    return {name: int(sum(record.get(f"{unit}/{name}", 0) for record in records)) for name in names}


def _shares(records: Sequence[dict[str, Any]], unit: str, names: Sequence[str]) -> dict[str, float]:
    """The share of each source in all sequences (tokens, images) of these steps; empty if there were none."""
    counts = _counts(records, unit, names)
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items()} if total else {}


def _stage_ends(run: RunConfig) -> list[int]:
    """The step after the last of every stage; none is after the run's end."""
    return [min(step, run.steps) for step in (*(stage.step for stage in run.data.curriculum), run.steps)]


def _requested_curves(run: RunConfig) -> dict[str, list[tuple[int, float]]]:
    """The requested share of each source over steps, as the corners of a line."""
    corners: dict[str, list[tuple[int, float]]] = {name: [] for name in run.data.sources}
    for stage, end in zip(run.data.stages(), _stage_ends(run), strict=True):
        for name, line in corners.items():
            share = stage.shares.get(name, 0) / sum(stage.shares.values())
            line += [(min(stage.step, end), share), (end, share)]
    return corners


def _realised_curves(
    run: RunConfig, records: Sequence[dict[str, Any]], unit: str
) -> dict[str, list[tuple[float, float]]]:
    """The real share of each source in about sixty stretches of the run, at the middle of each."""
    names = list(run.data.sources)
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for numbers in np.array_split(np.arange(len(records)), min(POINTS, len(records)) or 1):
        stretch = [records[number] for number in numbers]
        for name, share in _shares(stretch, unit, names).items():
            curves[name].append((float(np.mean([record["step"] for record in stretch])) - 0.5, share))
    return curves

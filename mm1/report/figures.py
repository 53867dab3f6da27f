"""Figures of a run as inline SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mm1.eval.results import TaskScore
from mm1.report.drawing import COLOURS, STYLE, legend, svg

SKIPPED, REWOUND = "#b8a13a", "#d03b3b"
"""Colours of lines at steps that the run skipped, and at steps where it went back from a spike of the loss."""

POINTS = 1000
"""Most points of a curve, so that the page of a month-long run still opens. Marked steps are all drawn."""


@dataclass(frozen=True, slots=True)
class MarkedSteps:
    """Steps that get an upright line in a drawing over steps."""

    skipped: Sequence[int] = ()
    rewound: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """One small drawing over steps; `curves` maps a name to (step, value) pairs."""

    title: str
    curves: Mapping[str, Sequence[tuple[int, float]]]
    logarithmic: bool = False
    percent: bool = False


def losses(
    name: str,
    curves: Mapping[str, Sequence[tuple[int, float]]],
    *,
    held_out: Mapping[str, Sequence[tuple[int, float]]],
    unit: str,
    marked: MarkedSteps,
) -> str:
    """SVG of the loss of each source over steps, smoothed in front of the raw values; held-out losses are dots.

    `curves` and `held_out` map a source to (step, loss) pairs; a source has the same colour in both.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(7.4, 3.0), layout="constrained")
        axes = figure.add_subplot()
        for number, source in enumerate(dict.fromkeys([*curves, *held_out])):
            colour = COLOURS[number % len(COLOURS)]
            if points := curves.get(source):
                steps, values = np.array(points).T
                axes.plot(_thin(steps), _thin(values), color=colour, alpha=0.22, linewidth=0.7)
                axes.plot(_thin(steps), _thin(_smooth(values)), color=colour, linewidth=1.6, label=source)
            if points := held_out.get(source):
                steps, values = np.array(points).T
                axes.plot(steps, values, "o:", color=colour, markersize=5, linewidth=0.9, label=f"{source}, held out")
        _mark(axes, marked)
        axes.set_xlabel("step")
        axes.set_ylabel(f"loss (nats per {unit})")
        axes.set_xlim(left=0)
        legend(axes)
        return svg(figure, name)


def panels(name: str, panels: Sequence[Panel], *, marked: MarkedSteps) -> str:
    """SVG of small drawings over the same steps, two in a line."""
    with rc_context(STYLE):
        rows = -(-len(panels) // 2)
        figure = Figure(figsize=(7.4, 1.9 * rows + 0.2), layout="constrained")
        grid = figure.subplots(rows, 2, sharex=True, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            for number, (label, points) in enumerate(panel.curves.items()):
                steps, values = np.array(points).T
                dots = "o" if len(points) < 3 else ""
                colour = COLOURS[number % len(COLOURS)]
                axes.plot(
                    _thin(steps), _thin(values), f"{dots}-", color=colour, linewidth=1.1, markersize=3, label=label
                )
            _mark(axes, marked)
            axes.set_title(panel.title, fontsize=9.5, loc="left")
            if panel.logarithmic:
                axes.set_yscale("log")
            else:
                axes.set_ylim(bottom=0)
            if panel.percent:
                axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
            if len(panel.curves) > 1:
                axes.legend(fontsize=7, labelspacing=0.2, handlelength=1.2)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[-1]:
            axes.set_xlabel("step")
        return svg(figure, name)


def _mark(axes: Axes, marked: MarkedSteps) -> None:
    for steps, colour, style in ((marked.skipped, SKIPPED, ":"), (marked.rewound, REWOUND, "--")):
        for step in steps:
            axes.axvline(step, color=colour, linestyle=style, linewidth=0.9)


def scores(name: str, cells: Sequence[TaskScore]) -> str:
    """SVG of one task's score over shots with 95 % intervals; hollow points are blind scores."""
    with rc_context(STYLE):
        figure = Figure(figsize=(4.2, 2.7), layout="constrained")
        axes = figure.add_subplot()
        _points(axes, cells, [cell.score for cell in cells], colour=COLOURS[0], label="score", filled=True)
        _points(axes, cells, [cell.blind for cell in cells], colour=COLOURS[1], label="blind", filled=False)
        axes.axhline(cells[0].majority, color="#888888", linewidth=0.8, linestyle=":", label="majority")
        axes.set_xticks([cell.shots for cell in cells])
        axes.set_xlabel("shots")
        axes.set_ylabel(cells[0].task.replace("_", " "))
        axes.set_ylim(bottom=0)
        legend(axes)
        return svg(figure, name)


def gains(name: str, by_task: Mapping[str, Sequence[TaskScore]]) -> str:
    """SVG of what more shots bring each task over its fewest, in points, with 95 % intervals."""
    with rc_context(STYLE):
        figure = Figure(figsize=(4.2, 2.7), layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(0, color="#888888", linewidth=0.8)
        for number, (task, cells) in enumerate(by_task.items()):
            more = [cell for cell in cells if cell.gain is not None]
            label, colour = task.replace("_", " "), COLOURS[number % len(COLOURS)]
            _points(axes, more, [cell.gain for cell in more], colour=colour, label=label, filled=True)
        axes.set_xticks(sorted({cell.shots for cells in by_task.values() for cell in cells}))
        axes.set_xlim(left=0)
        axes.set_xlabel("shots")
        axes.set_ylabel("points gained by shots")
        legend(axes)
        return svg(figure, name)


def shares(
    name: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    requested: Mapping[str, Sequence[tuple[int, float]]],
    steps: int,
    what: str,
) -> str:
    """SVG of each source's share of `what` over steps: solid the real share, dashed the requested one.

    `curves` and `requested` map a source to (step, share) pairs.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(7.4, 2.3), layout="constrained")
        axes = figure.add_subplot()
        for number, source in enumerate(dict.fromkeys([*curves, *requested])):
            colour = COLOURS[number % len(COLOURS)]
            if line := requested.get(source):
                axes.plot(*zip(*line, strict=True), color=colour, linewidth=1.0, linestyle=(0, (4, 3)))
            if points := curves.get(source):
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.6, label=source)
        axes.set_xlabel("step")
        axes.set_ylabel(f"share of {what}")
        axes.set_xlim(0, steps)
        axes.set_ylim(0, 1)
        legend(axes)
        return svg(figure, name)


def _points(
    axes: Axes, cells: Sequence[TaskScore], intervals: Sequence, *, colour: str, label: str, filled: bool
) -> None:
    means = np.array([interval.mean for interval in intervals])
    errors = [
        means - [interval.low for interval in intervals],
        np.array([interval.high for interval in intervals]) - means,
    ]
    axes.errorbar(
        [cell.shots for cell in cells],
        means,
        yerr=np.maximum(errors, 0),
        fmt="o-" if filled else "o--",
        color=colour,
        markerfacecolor=colour if filled else "none",
        linewidth=1.2,
        elinewidth=0.9,
        markersize=4.5,
        label=label,
    )


def _thin(values: np.ndarray) -> np.ndarray:
    """Every n-th value, so that at most `POINTS` remain."""
    return values[:: 1 + (len(values) - 1) // POINTS]


def _smooth(values: np.ndarray) -> np.ndarray:
    """The centred mean over a thirtieth of the run; the window is shorter at both ends."""
    half = max(1, len(values) // 60)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)

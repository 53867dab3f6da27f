"""The figure of an ablation: arms with their intervals, or lines over what arms vary."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mm1.ablate.comparison import Comparison, label
from mm1.ablate.plan import PlannedArm
from mm1.report.drawing import COLOURS, STYLE, svg

SPREAD = 20
"""An axis whose largest number is so many times the smallest is logarithmic."""


def draw(comparison: Comparison, measures: Sequence[str]) -> str:
    """SVG with one panel for each measure. Lines over `at` if all arms have it, else one row for each arm."""
    arms = [arm for arm in comparison.plan.arms if arm.name in comparison.cells]
    groups = list(dict.fromkeys(arm.group for arm in arms))
    colours = {group: COLOURS[number % len(COLOURS)] for number, group in enumerate(groups)}
    has_axis = all(arm.at is not None for arm in arms)
    with rc_context({**STYLE, "axes.grid.axis": "both" if has_axis else "x"}):
        height = 2.8 if has_axis else 0.9 + 0.2 * len(arms)
        figure = Figure(figsize=(max(5.0, 2.4 * len(measures)), height), layout="constrained")
        panels = figure.subplots(1, len(measures), squeeze=False, sharey=not has_axis)[0]
        for axes, measure in zip(panels, measures, strict=True):
            (_lines if has_axis else _rows)(axes, comparison, measure, arms=arms, colours=colours)
            title = label(measure).replace(" of the right answer", "").replace(" at ", "\n")
            axes.set_title(title, fontsize=9, loc="left")
        if has_axis and len(groups) > 1:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
        return svg(figure, f"{comparison.plan.name}-{'-'.join(measures)}")


def _rows(
    axes: Axes, comparison: Comparison, measure: str, *, arms: Sequence[PlannedArm], colours: dict[str, str]
) -> None:
    """One row for each arm, the base first, with a line down from the base."""
    for row, arm in enumerate(arms):
        low, mean, high = _bounds(comparison, arm, measure)
        axes.errorbar(
            [mean], [row], xerr=[[mean - low], [high - mean]], fmt="o", color=colours[arm.group], markersize=4
        )
    if comparison.plan.base.name in comparison.cells:
        axes.axvline(
            _bounds(comparison, comparison.plan.base, measure)[1], color="#888888", linewidth=0.8, linestyle=":"
        )
    axes.set_yticks(range(len(arms)), [arm.name for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)


def _lines(
    axes: Axes, comparison: Comparison, measure: str, *, arms: Sequence[PlannedArm], colours: dict[str, str]
) -> None:
    """One line for each group over `at`."""
    for group, colour in colours.items():
        own = sorted((arm for arm in arms if arm.group == group), key=lambda arm: arm.at or 0)
        bounds = np.array([_bounds(comparison, arm, measure) for arm in own])
        errors = [bounds[:, 1] - bounds[:, 0], bounds[:, 2] - bounds[:, 1]]
        axes.errorbar(
            [arm.at or 0 for arm in own], bounds[:, 1], yerr=errors, fmt="o-", color=colour, label=group, markersize=4
        )
    positions = [arm.at or 0 for arm in arms]
    if min(positions) > 0 and max(positions) > SPREAD * min(positions):
        axes.set_xscale("log")
    axes.set_xlabel(comparison.plan.axis)


def _bounds(comparison: Comparison, arm: PlannedArm, measure: str) -> tuple[float, float, float]:
    """Low end, mean and high end; all three the mean where there is no interval."""
    value = comparison.cells[arm.name][measure].value
    if math.isnan(value.low):
        return value.mean, value.mean, value.mean
    return min(value.low, value.mean), value.mean, max(value.high, value.mean)

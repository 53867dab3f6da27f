"""The figure of a fitted law: each size's values over the rate, and the best rates over the sizes."""

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from mm1.ablate.law import FittedLaw, HeldOut, Parabola
from mm1.report.drawing import COLOURS, STYLE, svg
from mm1.scaling import PAPER


def law_figure(law: FittedLaw, *, left_out: HeldOut | None = None) -> str:
    """SVG of two drawings: the parabola of each size with its runs, and the minima with the line and the paper's."""
    with rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for number, parabola in enumerate(law.parabolas):
            _draw_size(left, parabola, COLOURS[number % len(COLOURS)])
        left.set_xscale("log")
        left.set_xlabel("peak learning rate")
        left.set_ylabel(f"{law.search.measure} less its best")
        left.legend(title="parameters", fontsize=7.5, title_fontsize=7.5, handlelength=1.2)
        _draw_line(right, law, left_out)
        return svg(figure, "law")


def _draw_size(axes: Axes, parabola: Parabola, colour: str) -> None:
    """The runs as dots, the parabola as a line, its best rate as a triangle: all less the value there."""
    best, run_rates = parabola.at(parabola.best), np.exp(parabola.x_P)
    rates = np.geomspace(parabola.low, parabola.high, 100)
    axes.plot(rates, parabola.at(rates) - best, color=colour, linewidth=1.4, label=_short(parabola.parameters))
    values = parabola.at(run_rates) + parabola.residuals_P - best
    axes.plot(run_rates, values, "o", color=colour, markersize=3, alpha=0.7)
    axes.plot([parabola.best], [0], "v", color=colour, markersize=7)


def _draw_line(axes: Axes, law: FittedLaw, left_out: HeldOut | None) -> None:
    best = np.array([(rate.mean, rate.low, rate.high) for rate in law.best]).T
    sizes = [*law.search.sizes, *([left_out.parameters] if left_out else [])]
    span = np.geomspace(min(sizes) / 1.5, max(sizes) * 1.5, 50)
    band = np.array([(each.low, each.high) for each in map(law.rate, span)]).T
    axes.fill_between(span, *band, color=COLOURS[0], alpha=0.18, linewidth=0)
    axes.plot(span, [law.law.rate(size) for size in span], color=COLOURS[0], label=f"fitted, {law.law.exponent:.3f}")
    axes.plot(span, [PAPER.rate(size) for size in span], "--", color="#888888", label=f"MM1's, {PAPER.exponent:.3f}")
    axes.errorbar(
        law.search.sizes,
        best[0],
        yerr=np.abs(best[1:] - best[0]),
        fmt="v",
        color=COLOURS[0],
        elinewidth=0.9,
        markersize=5,
    )
    if left_out:
        measured = left_out.best.mean if left_out.best else left_out.best_rate
        axes.plot(
            [left_out.parameters],
            [measured],
            "o",
            color=COLOURS[1],
            markerfacecolor="none",
            label="left out of the fit",
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("non-embedding parameters")
    axes.set_ylabel("best peak learning rate")
    axes.set_xticks(sizes, [_short(size) for size in sizes])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=7.5, handlelength=1.6)


def _short(parameters: int) -> str:
    """12,345,678 as `12.3M`."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= unit:
            return f"{parameters / unit:.3g}{name}"
    return str(parameters)

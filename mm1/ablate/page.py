"""The page of an ablation: `ablation.html` in its folder, and its table as CSV and LaTeX."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from mm1.ablate.comparison import Cell, Comparison, cautions, compare_arms, label, sentence, shown
from mm1.ablate.drawing import draw
from mm1.ablate.measures import LIKELIHOOD
from mm1.ablate.plan import Plan, PlannedArm
from mm1.disk import write_whole
from mm1.report.findings import MINUS
from mm1.report.templates import load_template
from mm1.train.log import read_metrics

FILE = "ablation.html"
FIGURE = "figure.svg"
"""The likelihoods (scores, where there are none) and the losses of all arms in one drawing."""

_GREY = "#7d8590"
"""Of the text in a drawing without a page around it; readable on white and on near-black."""


@dataclass(frozen=True, slots=True)
class MeasuredCost:
    """What training took: hours in steps, and floating-point operations of real content."""

    hours: float
    flops: float


@dataclass(frozen=True, slots=True)
class Row:
    """One arm in a table of measures: how many seeds are finished, its cells in the order of the columns."""

    arm: PlannedArm
    seeds: int
    cells: list[Cell | None]


@dataclass(frozen=True, slots=True)
class Training:
    """What an arm is and took: the reports of its runs by seed, and their cost together."""

    arm: PlannedArm
    reports: list[tuple[int, str]]
    cost: MeasuredCost


def write_page(plan: Plan, folder: Path, failed: dict[str, str]) -> Path:
    """Write `ablation.html` and `figure.svg` of all runs that are finished, and return the path of the first.

    Raises:
        ValueError: none is finished.
    """
    comparison = compare_arms(plan, folder)
    path = folder / FILE
    template = load_template("page.html", package="mm1.ablate", label=label, shown=shown)
    tasks = [name for name in comparison.measures if name not in comparison.columns]
    stages = [name for name, one in plan.runs.items() if not one.scored and (folder / name).is_dir()]
    write_whole(
        path,
        template.render(
            plan=plan,
            sentence=sentence(comparison),
            cautions=cautions(comparison),
            drawings=_drawings(comparison),
            columns=comparison.columns,
            rows=_rows(comparison, comparison.columns),
            tasks=tasks,
            task_rows=_rows(comparison, tasks),
            trainings=[_training(arm, folder) for arm in plan.arms],
            stages=[(name, measured_cost(folder / name)) for name in stages],
            failed=failed,
        ),
    )
    scores, likelihoods, losses = _columns_by_kind(comparison)
    write_whole(folder / FIGURE, draw(comparison, [*(likelihoods or scores), *losses]).replace("currentColor", _GREY))
    return path


def _columns_by_kind(comparison: Comparison) -> tuple[list[str], list[str], list[str]]:
    """The columns of scores, of likelihoods and of losses."""
    columns = comparison.columns
    losses = [name for name in columns if name.startswith("loss/")]
    likelihoods = [name for name in columns if name.endswith(LIKELIHOOD)]
    return [name for name in columns if name not in {*losses, *likelihoods}], likelihoods, losses


def _drawings(comparison: Comparison) -> list[Markup]:
    """One drawing of scores, one of likelihoods, one of losses, as far as they were measured."""
    return [Markup(draw(comparison, names)) for names in _columns_by_kind(comparison) if names]


def _rows(comparison: Comparison, names: Sequence[str]) -> list[Row]:
    rows = []
    for arm in comparison.plan.arms:
        cells = comparison.cells.get(arm.name, {})
        rows.append(Row(arm, comparison.seeds.get(arm.name, 0), [cells.get(name) for name in names]))
    return rows


def _training(arm: PlannedArm, folder: Path) -> Training:
    reports = [
        (seed, f"{name}/report.html") for seed, name in arm.runs.items() if (folder / name / "report.html").is_file()
    ]
    costs = [measured_cost(folder / name) for name in arm.runs.values()]
    return Training(arm, reports, MeasuredCost(sum(one.hours for one in costs), sum(one.flops for one in costs)))


def measured_cost(run: Path) -> MeasuredCost:
    """What the training of a run took, from its metrics."""
    records = [record for record in read_metrics(run) if "step_seconds" in record]
    return MeasuredCost(
        hours=sum(record["step_seconds"] for record in records) / 3600,
        flops=sum(record.get("flops", 0.0) for record in records),
    )


def table_csv(comparison: Comparison) -> str:
    """The main table: each measure with its interval, and its difference from the base with its interval."""
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    parts = ("", " low", " high", " - base", " - base low", " - base high")
    lines.writerow(["arm", "changes", "seeds", *(name + part for name in comparison.columns for part in parts)])
    for arm in comparison.plan.arms:
        cells = comparison.cells.get(arm.name)
        if cells is not None:
            numbers = [
                number
                for name in comparison.columns
                for one in (cells[name].value, cells[name].difference)
                for number in (("", "", "") if one is None else (one.mean, one.low, one.high))
            ]
            lines.writerow([arm.name, arm.difference, comparison.seeds[arm.name], *numbers])
    return file.getvalue()


def table_latex(comparison: Comparison) -> str:
    """The main table for booktabs; bold where the interval of the difference from the base excludes 0."""
    columns = comparison.columns
    lines = [rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule"]
    lines += [" & ".join(["arm", *(_escaped(label(name)) for name in columns)]) + r" \\", r"\midrule"]
    for arm in comparison.plan.arms:
        cells = comparison.cells.get(arm.name)
        if cells is not None:
            shown_cells = [_latex_cell(cells[name], name) for name in columns]
            lines.append(" & ".join([_escaped(arm.name), *shown_cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_cell(cell: Cell, name: str) -> str:
    mean, bracket, rest = shown(cell.value, name).replace(MINUS, "$-$").partition(" [")
    mean = rf"\textbf{{{mean}}}" if cell.verdict else mean
    return mean + (rf" {{\scriptsize [{rest}}}" if bracket else "")


def _escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "#$%&_{}" else letter for letter in text)


FORMATS: dict[str, Callable[[Comparison], str]] = {"csv": table_csv, "latex": table_latex}

"""Two runs compared query by query."""

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from mm1.eval.metrics.statistics import Interval
from mm1.eval.results import TaskScore, points_of, read_results, shown

COMPARABLE = ("data", "split", "form", "metric", "judge", "judge_prompt")
"""What must be equal in two scores of the same task, shots and protocol, so that their difference says something."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs on one task: the mean of ours - theirs over the queries that both answered, in points."""

    name: str
    queries: int
    ours: float
    theirs: float
    difference: Interval


def compare(ours: Path, theirs: Path, *, seed: int = 0) -> list[Comparison]:
    """Every score that both runs have, compared query by query.

    Raises:
        ValueError: a run has no scores, the runs have none in common, or they have other queries, data or forms.
    """
    folders = [path / "eval" if (path / "eval").is_dir() else path for path in (ours, theirs)]
    scores = [{score.name: score for score in read_results(folder).scores} for folder in folders]
    for path, of_run in zip((ours, theirs), scores, strict=True):
        if not of_run:
            raise ValueError(f"{path} has no scores; run mm1 eval {path} first")
    common = [name for name in scores[0] if name in scores[1]]
    if not common:
        raise ValueError(
            f"no task at the same shots and under the same protocol in both: {ours} has {', '.join(scores[0])}; "
            f"{theirs} has {', '.join(scores[1])}"
        )
    if differences := [line for name in common for line in _differences(*(of_run[name] for of_run in scores))]:
        raise ValueError(f"{ours} and {theirs} can't be compared: {'; '.join(differences)}")
    return [_compare(name, folders, scores=[of_run[name] for of_run in scores], seed=seed) for name in common]


def _differences(ours: TaskScore, theirs: TaskScore) -> list[str]:
    """What makes two scores of one name incomparable.

    What an older version did not record is taken as equal, except the scoring rules: they have changed since.
    """
    pairs = [(name, getattr(ours, name), getattr(theirs, name)) for name in COMPARABLE]
    differences = [
        f"{ours.name}: {name} {one!r} and {other!r}" for name, one, other in pairs if one and other and one != other
    ]
    if ours.rules != theirs.rules:
        again = "run mm1 eval on both again, which scores kept replies anew and asks none of them again"
        differences.append(f"{ours.name}: scored by two versions of the scoring rules ({again})")
    return differences


def _compare(name: str, folders: list[Path], *, scores: list[TaskScore], seed: int) -> Comparison:
    runs = [points_of(folder, score) for folder, score in zip(folders, scores, strict=True)]
    numbers = [{query: number for number, query in enumerate(queries)} for queries, _ in runs]
    shared = [query for query in numbers[0] if query in numbers[1]]
    if not shared:
        raise ValueError(f"{name}: the two runs answered different queries; use the same --limit, --seed and data")
    ours, theirs = (
        points.at([of_run[query] for query in shared]) for of_run, (_, points) in zip(numbers, runs, strict=True)
    )
    return Comparison(name, len(shared), ours.mean(), theirs.mean(), ours.difference(theirs, seed=seed))


def comparison_table(comparisons: list[Comparison]) -> Table:
    """The comparisons for a terminal; a difference whose interval excludes 0 is coloured."""
    table = Table(title="ours - theirs, paired by query", title_justify="left")
    for name in ("task", "queries", "ours", "theirs", "difference"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for one in comparisons:
        difference = shown(one.difference, sign=True)
        if one.difference.above_zero or one.difference.below_zero:
            difference = f"[{'green' if one.difference.above_zero else 'red'}]{difference}[/]"
        table.add_row(one.name, str(one.queries), f"{one.ours:.1f}", f"{one.theirs:.1f}", difference)
    return table

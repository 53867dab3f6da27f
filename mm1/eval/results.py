"""The scores of an evaluation as they stand on disk and in tables: `summary.json`, and a file of answers a cell.

Scores in cells are in the points papers print: accuracy in percent, CIDEr times 100; the `score` of a line of
answers is the metric's own (0 to 1; CIDEr 0 to 10).
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from mm1.disk import write_whole
from mm1.eval.caption_loss import CaptionLoss
from mm1.eval.metrics.scores import Interval, paired_difference


@dataclass(frozen=True, slots=True)
class Cell:
    """One task at one number of shots; scores in points, intervals of 95 %.

    Of several trials, which differ in their shots, scores are means by query; `std` is that of their means.
    """

    task: str
    shots: int
    queries: int
    score: Interval
    blind: Interval | None  # with another query's picture
    difference: Interval | None  # score - blind, paired by query: above 0, the model looks
    gain: Interval | None  # over the fewest shots of the same call, paired by query
    majority: float  # always giving the commonest training answer
    majority_answer: str
    chance: float  # giving the answer of a random training example, or a random choice
    longest_prompt: int  # places; 0 where the model does not tell
    model_name: str
    seed: int
    limit: int
    protocol: str = ""  # what differs from MM1's
    trials: int = 1
    std: float | None = None
    totals: dict[str, dict[str, float]] = field(default_factory=dict)  # of all answers: score, blind, majority, chance
    judge: str = ""

    @property
    def name(self) -> str:
        """Of the files of answers."""
        return cell_name(self.task, self.shots, self.protocol)

    @property
    def files(self) -> list[str]:
        """One file of answers for each trial."""
        return [answers_file(self.name, trial) for trial in range(self.trials)]


@dataclass(slots=True)
class Results:
    """All cells of a run, and how much the right picture lowers the loss of its caption."""

    cells: list[Cell] = field(default_factory=list)
    losses: list[CaptionLoss] = field(default_factory=list)

    def put(self, cell: Cell) -> None:
        """Add `cell` in the place of an older one of the same task, shots and protocol."""
        kept = [old for old in self.cells if old.name != cell.name]
        self.cells = sorted([*kept, cell], key=lambda one: (one.task, one.shots, one.protocol))


def cell_name(task: str, shots: int, protocol: str) -> str:
    """What tells one cell from another in a folder."""
    return f"{task}-{shots}shot" + (f"-{protocol}" if protocol else "")


def answers_file(name: str, trial: int) -> str:
    """The file of a cell's answers in one trial."""
    return f"{name}-trial{trial}.jsonl" if trial else f"{name}.jsonl"


def read_answers(folder: Path, cell: Cell, *, trial: int = 0) -> list[dict[str, Any]]:
    """The lines of `cell`: query, request, prompt's hash, shots, answer, references, score, blind answer and score."""
    return read_lines(folder / cell.files[trial])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The answers in a file, one a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_results(folder: Path, *, model_name: str | None = None) -> Results:
    """What `folder/summary.json` records; empty when there is none or it is of another `model_name`."""
    path = folder / "summary.json"
    if not path.is_file():
        return Results()
    data = json.loads(path.read_text())
    results = Results(
        cells=[Cell(**_intervals(cell)) for cell in data["cells"]],
        losses=[CaptionLoss(**_intervals(loss)) for loss in data["losses"]],
    )
    if model_name is not None:
        results.cells = [cell for cell in results.cells if cell.model_name == model_name]
        results.losses = [loss for loss in results.losses if loss.model_name == model_name]
    return results


def table(results: Results) -> Table:
    """The few-shot table for a terminal: every score with its interval, and the blind score beside it."""
    found = Table(title="few-shot scores", title_justify="left", caption_justify="left")
    found.caption = (
        "[..] 95 % interval; ± deviation over trials; blind: another query's picture; difference: score - blind, paired"
    )
    for name in ("task", "shots", "queries", "score", "blind", "difference", "majority", "chance"):
        found.add_column(name, justify="left" if name == "task" else "right")
    for cell in results.cells:
        difference = _shown(cell.difference, sign=True)
        if cell.difference and cell.difference.above_zero:
            difference = f"[green]{difference}[/green]"
        task = f"{cell.task} ({cell.protocol})" if cell.protocol else cell.task
        score = _shown(cell.score) + (f" ± {cell.std:.1f}" if cell.std is not None else "")
        found.add_row(
            *(task, str(cell.shots), str(cell.queries)),
            *(score, _shown(cell.blind), difference),
            *(f"{cell.majority:.1f}", f"{cell.chance:.1f}"),
        )
        for name, values in cell.totals.items():
            score, blind, majority, chance = (
                f"{values[of]:.1f}" if of in values else "-" for of in ("score", "blind", "majority", "chance")
            )
            found.add_row(f"  {name}", "", "", score, blind, "", majority, chance)
    return found


@dataclass(frozen=True, slots=True)
class Compared:
    """Two runs on one task: the mean of ours - theirs over the queries that both answered, in points."""

    name: str
    queries: int
    ours: float
    theirs: float
    difference: Interval


def compare(ours: Path, theirs: Path, *, seed: int = 0) -> list[Compared]:
    """Every cell that both runs have, compared query by query.

    Raises:
        ValueError: a run without scores, no cell in common, or answers to other queries.
    """
    folders = [path / "eval" if (path / "eval").is_dir() else path for path in (ours, theirs)]
    cells = [{cell.name: cell for cell in read_results(folder).cells} for folder in folders]
    for path, found in zip((ours, theirs), cells, strict=True):
        if not found:
            raise ValueError(f"{path} has no scores; run mm1 eval {path} first")
    both = [name for name in cells[0] if name in cells[1]]
    if not both:
        raise ValueError(
            f"no task at the same shots in both: {ours} has {', '.join(cells[0])}; {theirs} has {', '.join(cells[1])}"
        )
    return [_compared(name, folders, [found[name] for found in cells], seed) for name in both]


def _compared(name: str, folders: list[Path], cells: list[Cell], seed: int) -> Compared:
    scores = [mean_scores(folder, cell) for folder, cell in zip(folders, cells, strict=True)]
    shared = [query for query in scores[0] if query in scores[1]]
    if not shared:
        raise ValueError(f"{name}: the two runs answered different queries; use the same --limit, --seed and data")
    ours, theirs = (np.array([of_run[query] for query in shared]) for of_run in scores)
    difference = paired_difference(ours, theirs, seed=seed)
    return Compared(name, len(shared), float(ours.mean()), float(theirs.mean()), difference)


def mean_scores(folder: Path, cell: Cell) -> dict[str, float]:
    """Points of each query, the mean over the trials."""
    trials = [read_answers(folder, cell, trial=trial) for trial in range(cell.trials)]
    return {
        lines[0]["query"]: 100 * float(np.mean([line["score"] for line in lines]))
        for lines in zip(*trials, strict=True)
    }


def comparison(compared: list[Compared]) -> Table:
    """The comparison for a terminal; a difference whose interval excludes 0 is coloured."""
    found = Table(title="ours - theirs, paired by query", title_justify="left")
    for name in ("task", "queries", "ours", "theirs", "difference"):
        found.add_column(name, justify="left" if name == "task" else "right")
    for one in compared:
        shown = _shown(one.difference, sign=True)
        if one.difference.above_zero or one.difference.below_zero:
            shown = f"[{'green' if one.difference.above_zero else 'red'}]{shown}[/]"
        found.add_row(one.name, str(one.queries), f"{one.ours:.1f}", f"{one.theirs:.1f}", shown)
    return found


def save(results: Results, folder: Path) -> None:
    """Write `summary.json`."""
    write_whole(folder / "summary.json", json.dumps(asdict(results), indent=1, ensure_ascii=False) + "\n")


def points(lines: list[dict[str, Any]], name: str) -> np.ndarray:
    """One column of answers' scores, in points."""
    return 100 * np.array([line[name] for line in lines], dtype=np.float64)


def _shown(interval: Interval | None, *, sign: bool = False) -> str:
    if interval is None:
        return "-"
    shape = "+.1f" if sign else ".1f"
    return f"{interval.mean:{shape}} \\[{interval.low:{shape}}, {interval.high:{shape}}]"


def _intervals(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: Interval(**value) if isinstance(value, dict) and "low" in value else value
        for name, value in record.items()
    }

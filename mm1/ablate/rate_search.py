"""A search for learning rates: the points that `results.csv` of an ablation has of one measure."""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mm1.config.base import ConfigError, missing, nearest
from mm1.config.run import OptimConfig

RESULTS = "results.csv"
COLUMNS = ("arm", "seed", "measure", "value", "parameters", "learning_rate")


@dataclass(frozen=True, slots=True)
class Point:
    """The value that one run of the search has."""

    parameters: int  # non-embedding parameters of the language model
    learning_rate: float
    seed: int
    value: float


@dataclass(frozen=True, slots=True)
class Search:
    """All points of one measure. Losses are minimised, all other measures maximised."""

    measure: str
    points: tuple[Point, ...]

    @property
    def sign(self) -> int:
        """1 where the best value is the lowest, -1 where it is the highest."""
        return 1 if self.measure.startswith("loss") else -1

    @property
    def sizes(self) -> list[int]:
        """The numbers of parameters, the smallest first."""
        return sorted({point.parameters for point in self.points})

    def of(self, parameters: int) -> "Search":
        """The points of one size, by rate and seed."""
        points = [point for point in self.points if point.parameters == parameters]
        return Search(self.measure, tuple(sorted(points, key=lambda point: (point.learning_rate, point.seed))))

    def without(self, parameters: int) -> "Search":
        return Search(self.measure, tuple(point for point in self.points if point.parameters != parameters))

    def means(self) -> dict[float, float]:
        """The mean value of each rate, the lowest rate first."""
        values: dict[float, list[float]] = {}
        for point in sorted(self.points, key=lambda point: point.learning_rate):
            values.setdefault(point.learning_rate, []).append(point.value)
        return {rate: float(np.mean(of_rate)) for rate, of_rate in values.items()}

    def best_rate(self) -> float:
        """The rate of the search with the best mean."""
        means = self.means()
        return min(means, key=lambda rate: self.sign * means[rate])


def read_search(path: Path, measure: str) -> Search:
    """The points of `measure` in a `results.csv`, or in the folder that holds it.

    `loss` is the mean of all measures `loss/STORE`; any other name is one measure, such as `8shot` or `loss/text`.

    Raises:
        ConfigError: there is no such file, it lacks columns, or it has no such measure (the nearest is named).
    """
    rows = _rows(path / RESULTS if path.is_dir() else path)
    names = sorted({row["measure"] for row in rows})
    wanted = {name for name in names if name == measure or (measure == "loss" and name.startswith("loss/"))}
    if not wanted:
        raise ConfigError(f"{path} has no measure {measure!r}; {nearest(measure, names)}")
    values: dict[tuple[int, float, int], list[float]] = {}
    for row in rows:
        if row["measure"] in wanted and math.isfinite(value := float(row["value"])):
            key = int(float(row["parameters"])), float(row["learning_rate"]), int(row["seed"])
            values.setdefault(key, []).append(value)
    return Search(measure, tuple(Point(*key, float(np.mean(of_run))) for key, of_run in sorted(values.items())))


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise ConfigError(f"{missing(path, 'file')}; `mm1 ablate learning_rate --to FOLDER` writes {RESULTS}")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if lacking := sorted(set(COLUMNS) - set(rows[0] if rows else ())):
        raise ConfigError(f"{path} {'lacks the columns ' + ', '.join(lacking) if rows else 'has no row'}")
    return rows


def save_points(search: Search, path: Path) -> None:
    """Write the points as CSV: parameters, learning_rate, seed, value."""
    with path.open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(("parameters", "learning_rate", "seed", search.measure))
        for point in search.points:
            lines.writerow((point.parameters, repr(point.learning_rate), point.seed, repr(point.value)))


def weight_decays(folder: Path) -> list[float]:
    """The weight decays of the runs that a folder's `ablation.json` plans; none if it has no such file."""
    path = folder / "ablation.json"
    if not path.is_file():
        return []
    configs = [run["config"] for run in json.loads(path.read_text())["runs"].values() if run["scored"]]
    default = OptimConfig().weight_decay  # which the record leaves out
    return sorted({config.get("optim", {}).get("weight_decay", default) for config in configs})

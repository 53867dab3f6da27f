"""`law.json`: a fitted law with all that it was fitted to, so that its intervals can be computed anew for any size."""

import json
from collections.abc import Sequence
from dataclasses import astuple
from datetime import date
from pathlib import Path

from mm1.ablate.law import FittedLaw, fit_law
from mm1.ablate.rate_search import Point, Search
from mm1.config.base import ConfigError
from mm1.disk import write_whole
from mm1.eval.metrics.statistics import Interval
from mm1.scaling import read_law


def save_law(law: FittedLaw, path: Path, *, source: Path, weight_decays: Sequence[float]) -> None:
    """Write the law. `optim.learning_rate=law:FILE` reads `exponent` and `intercept`, `load_law` the points."""
    data = {
        "exponent": law.law.exponent,
        "intercept": law.law.intercept,
        "exponent_interval": _pair(law.exponent),
        "intercept_interval": _pair(law.intercept),
        "measure": law.search.measure,
        "source": str(source),
        "date": date.today().isoformat(),
        "weight_decays": list(weight_decays),
        "sizes": [
            {
                "parameters": one.parameters,
                "rate": best.mean,
                "rate_interval": _pair(best),
                "best_rate_of_grid": one.best_rate,
            }
            for one, best in zip(law.parabolas, law.best, strict=True)
        ],
        "points": [astuple(point) for point in law.search.points],
    }
    write_whole(path, json.dumps(data, indent=1) + "\n")


def load_law(path: Path) -> FittedLaw:
    """The law in a file that `save_law` wrote, fitted anew to its points.

    Raises:
        ConfigError: there is no such file, it holds no law, or another one than that of its points.
    """
    written = read_law(path)
    data = json.loads(path.read_text())
    try:
        law = fit_law(Search(data["measure"], tuple(Point(*point) for point in data["points"])))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} has no points that give a law ({error}); write it again with mm1 law fit") from None
    if abs(law.law.exponent - written.exponent) > 1e-6:
        raise ConfigError(
            f"{path} has the exponent {written.exponent:.6f}, but its points give {law.law.exponent:.6f}; "
            "write it again with mm1 law fit"
        )
    return law


def recorded_weight_decays(path: Path) -> list[float]:
    """The weight decays of the runs that the law in a file was fitted to."""
    return json.loads(path.read_text())["weight_decays"]


def _pair(interval: Interval) -> list[float]:
    return [interval.low, interval.high]

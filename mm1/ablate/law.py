"""The learning-rate law, fitted: a parabola for each size, a line through their minima, and how sure both are.

The paper's way (MM1, section 3.4) is a grid of rates for each size, then a linear regression of the logarithms of the
best rates on those of the sizes. Here the best rate of a size is the minimum of a parabola in the rate's logarithm, so
that it need not be one of the grid's rates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mm1.ablate.rate_search import Search
from mm1.eval.metrics.statistics import Interval
from mm1.scaling import Law

DRAWS = 2000
WINDOW = 5
"""Most rates that a parabola goes through, those around the best one: further away no loss is a parabola."""


class LawError(ValueError):
    """A search that gives no law; the message names the sizes and says which runs are missing."""


@dataclass(frozen=True, slots=True)
class Parabola:
    """The values of one size over the logarithm of the rate, for rates from `low` to `high`.

    `coefficients` are those of `numpy.polyfit`, the highest power first. `x_P` are the logarithms of the rates of the
    runs that it goes through, `residuals_P` what it leaves of their values.
    """

    parameters: int
    coefficients: np.ndarray
    best_rate: float  # of the grid
    x_P: np.ndarray
    residuals_P: np.ndarray

    @property
    def low(self) -> float:
        return float(np.exp(self.x_P.min()))

    @property
    def high(self) -> float:
        return float(np.exp(self.x_P.max()))

    @property
    def best(self) -> float:
        """The rate of its lowest or highest point."""
        return float(np.exp(-self.coefficients[1] / (2 * self.coefficients[0])))

    def at(self, rate: float | np.ndarray) -> float | np.ndarray:
        """The value at a rate."""
        return np.polyval(self.coefficients, np.log(rate))


@dataclass(frozen=True, slots=True)
class FittedLaw:
    """A law with the parabolas it goes through. `drawn_2D` are exponent and intercept in redrawn searches."""

    search: Search
    law: Law
    parabolas: tuple[Parabola, ...]
    best: tuple[Interval, ...]  # of each parabola
    drawn_2D: np.ndarray

    @property
    def exponent(self) -> Interval:
        return _interval(self.law.exponent, self.drawn_2D[0])

    @property
    def intercept(self) -> Interval:
        return _interval(self.law.intercept, self.drawn_2D[1])

    def rate(self, parameters: float) -> Interval:
        """The rate that the law predicts for a size."""
        return _interval(self.law.rate(parameters), np.exp([np.log(parameters), 1] @ self.drawn_2D))

    @property
    def spread(self) -> float:
        """The largest factor between a parabola's best rate and the law's."""
        return float(np.exp(max(abs(np.log(one.best / self.law.rate(one.parameters))) for one in self.parabolas)))


def fit_law(search: Search, *, seed: int = 0) -> FittedLaw:
    """The law of a search, with 95 % intervals by a bootstrap over the runs of its grid.

    Raises:
        LawError: fewer than two sizes, or sizes whose best rate is not inside their grid; all of them are named.
    """
    if len(search.sizes) < 2:
        raise LawError(f"a law needs at least two sizes; found {len(search.sizes)}")
    problems, parabolas = [], []
    for parameters in search.sizes:
        try:
            parabolas.append(fit_parabola(search.of(parameters)))
        except LawError as error:
            problems.append(str(error))
    if problems:
        raise LawError("; ".join(problems))
    sizes, drawn_SD = np.log(search.sizes), _redraw(parabolas, seed=seed)
    law = Law(*np.polyfit(sizes, np.log([one.best for one in parabolas]), 1).tolist())
    best = tuple(_interval(one.best, drawn_D) for one, drawn_D in zip(parabolas, np.exp(drawn_SD), strict=True))
    return FittedLaw(search, law, tuple(parabolas), best, np.polyfit(sizes, drawn_SD, 1))


def fit_parabola(search: Search) -> Parabola:
    """The parabola of a search of one size.

    Raises:
        LawError: the best rate is at the grid's edge, the parabola has no best rate, or there are too few points.
    """
    (parameters,) = search.sizes
    name = f"{parameters:,} parameters"
    rates, best = list(search.means()), search.best_rate()
    _check_inside(rates, best, name=name)
    window = _around(rates, best)
    points = [point for point in search.points if point.learning_rate in window]
    if len(points) < 4:
        raise LawError(f"{name}: {len(points)} runs fix a parabola but don't say how sure it is; add rates or seeds")
    x_P, value_P = np.log([point.learning_rate for point in points]), np.array([point.value for point in points])
    coefficients = np.polyfit(x_P, value_P, 2)
    parabola = Parabola(parameters, coefficients, best, x_P, value_P - np.polyval(coefficients, x_P))
    if search.sign * coefficients[0] <= 0:
        raise LawError(
            f"{name}: the parabola through its values opens {'downwards' if search.sign > 0 else 'upwards'}, so it has "
            "no best rate; use rates further apart, or more seeds"
        )
    if not parabola.low < parabola.best < parabola.high:
        raise LawError(
            f"{name}: the parabola's best rate, {parabola.best:.3g}, is outside of its rates, {parabola.low:.3g} to "
            f"{parabola.high:.3g}; extend the grid {_beyond(rates, below=parabola.best <= parabola.low)}, or add seeds"
        )
    return parabola


def _check_inside(rates: Sequence[float], best: float, *, name: str) -> None:
    if len(rates) < 3:
        raise LawError(f"{name}: a parabola needs at least three rates; found {len(rates)}")
    if best in (rates[0], rates[-1]):
        end = "lowest" if best == rates[0] else "highest"
        raise LawError(
            f"{name}: the best rate, {best:.3g}, is the {end} of its grid, so the minimum may lie beyond; "
            f"extend the grid {_beyond(rates, below=best == rates[0])}"
        )


def _beyond(rates: Sequence[float], *, below: bool) -> str:
    """Where to extend a grid, with the next rate in its own steps."""
    if below:
        return f"below {rates[0]:.3g}, for example with {rates[0] ** 2 / rates[1]:.2g}"
    return f"above {rates[-1]:.3g}, for example with {rates[-1] ** 2 / rates[-2]:.2g}"


def _around(rates: Sequence[float], best: float) -> list[float]:
    """The `WINDOW` rates around the best one, or as many as there are."""
    first = min(max(0, rates.index(best) - WINDOW // 2), max(0, len(rates) - WINDOW))
    return list(rates[first : first + WINDOW])


def _redraw(parabolas: Sequence[Parabola], *, seed: int) -> np.ndarray:
    """The logarithm of each parabola's best rate in `DRAWS` redrawn searches, [sizes, draws].

    The residuals of all sizes, rates and seeds are dealt out anew. They are smaller than the noise they come from by a
    factor that is not known; it is drawn from its distribution for normal noise. `tests/test_law.py` counts how often
    the intervals hold the truth: without that factor it is 90 times in a hundred with one seed.
    """
    random = np.random.default_rng([seed, DRAWS])
    residuals = np.concatenate([one.residuals_P for one in parabolas])
    freedom = len(residuals) - 3 * len(parabolas)
    scale_D1 = np.sqrt(len(residuals) / random.chisquare(freedom, (DRAWS, 1)))
    return np.array(
        [
            _redraw_one(one, scale_D1 * residuals[random.integers(len(residuals), size=(DRAWS, len(one.x_P)))])
            for one in parabolas
        ]
    )


def _redraw_one(parabola: Parabola, noise_DP: np.ndarray) -> np.ndarray:
    """The logarithm of the best rate, in the range of the parabola, after noise is added to it."""
    centre = parabola.x_P.mean()  # about which least squares is well conditioned
    x_P = parabola.x_P - centre
    values_DP = np.polyval(parabola.coefficients, parabola.x_P) + noise_DP
    a_D, b_D, _ = np.sign(parabola.coefficients[0]) * np.linalg.pinv(np.vander(x_P, 3)) @ values_DP.T
    low, high = x_P.min(), x_P.max()
    # a drawn parabola that opens the other way is best at one end
    end_D = np.where(a_D * low**2 + b_D * low < a_D * high**2 + b_D * high, low, high)
    with np.errstate(divide="ignore", invalid="ignore"):
        return centre + np.where(a_D > 0, np.clip(-b_D / (2 * a_D), low, high), end_D)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What a law says of a size that it was not fitted to, beside what the size's own runs say.

    `best_rate` is the best of the grid, `best` that of the size's parabola, and `cost` how much worse the parabola is
    at the predicted rate: None where there is no parabola, or none so far, and `reason` says why.
    """

    parameters: int
    predicted: Interval
    best_rate: float
    best: Interval | None
    cost: float | None
    reason: str = ""


def held_out(law: FittedLaw, search: Search, *, seed: int = 0) -> HeldOut:
    """The law's prediction for the size of `search`, beside the best rate of its own runs."""
    (parameters,) = search.sizes
    predicted, best_rate = law.rate(parameters), search.best_rate()
    try:
        parabola = fit_parabola(search)
    except LawError as error:
        return HeldOut(parameters, predicted, best_rate, None, None, str(error))
    best = _interval(parabola.best, np.exp(_redraw([parabola], seed=seed)))
    if not parabola.low <= predicted.mean <= parabola.high:
        return HeldOut(parameters, predicted, best_rate, best, None, "the prediction is outside of its rates")
    cost = search.sign * float(parabola.at(predicted.mean) - parabola.at(parabola.best))
    return HeldOut(parameters, predicted, best_rate, best, cost)


def _interval(value: float, drawn: np.ndarray) -> Interval:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high))

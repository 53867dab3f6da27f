"""The arms of an ablation compared: each measure with its interval, and the paired difference from the base."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mm1.ablate.intervals import difference, interval
from mm1.ablate.measures import LIKELIHOOD, Measures, all_measures, averages
from mm1.ablate.plan import Plan
from mm1.eval.metrics.statistics import Interval
from mm1.report.findings import MINUS


@dataclass(frozen=True, slots=True)
class Cell:
    """One measure of one arm: its mean over seeds, and its difference from the base; None for the base itself."""

    value: Interval
    difference: Interval | None = None
    lower_is_better: bool = False

    @property
    def verdict(self) -> str:
        """`better` or `worse` than the base if the interval of the difference excludes 0, else nothing."""
        change = self.difference
        if change is None or not (change.above_zero or change.below_zero):
            return ""
        return "better" if change.below_zero == self.lower_is_better else "worse"


@dataclass(frozen=True, slots=True)
class Comparison:
    """All cells by arm and measure; arms and cells that are not measured yet are left out."""

    plan: Plan
    measures: tuple[str, ...]
    cells: dict[str, dict[str, Cell]]
    seeds: dict[str, int]  # finished, by arm

    @property
    def columns(self) -> list[str]:
        """The measures of the main table, as the paper prints them: means over tasks, then losses."""
        return [name for name in self.measures if name.startswith("loss/") or name[0].isdigit()]

    @property
    def main(self) -> str:
        """The measure that the sentence and the ranking speak of: a continuous one."""
        likely = [name for name in self.columns if name.endswith(LIKELIHOOD)]
        losses = [name for name in self.columns if name.startswith("loss/")]
        return likely[-1] if likely else "loss/text" if "loss/text" in losses else losses[0]


def compare_arms(plan: Plan, folder: Path) -> Comparison:
    """The comparison of all runs in `folder` that are finished.

    Raises:
        ValueError: none is finished.
    """
    measured = {arm: of_arm for arm, of_arm in all_measures(plan, folder).items() if of_arm}
    if not measured:
        raise ValueError(
            f"no arm of {plan.name} in {folder} is finished; `mm1 ablate` without --csv and --latex trains them"
        )
    names = _names(next(iter(next(iter(measured.values())).values())))
    base = measured.get(plan.base.name, {})
    cells = {
        arm: {name: _cell(name, of_arm, None if arm == plan.base.name else base) for name in names}
        for arm, of_arm in measured.items()
    }
    return Comparison(plan, tuple(names), cells, {arm: len(of_arm) for arm, of_arm in measured.items()})


def _names(measures: Measures) -> list[str]:
    """All measures: means over tasks first, scores before likelihoods, then losses, then single tasks."""
    means = sorted(averages(measures.queries), key=lambda name: (name.endswith(LIKELIHOOD), int(name.split("shot")[0])))
    return [*means, *(f"loss/{store}" for store in measures.losses), *measures.queries]


def _cell(name: str, ours: dict[int, Measures], base: dict[int, Measures] | None) -> Cell:
    lower = name.startswith("loss/")
    value = interval(_parts(name, ours.values()))
    if base is None:
        return Cell(value, lower_is_better=lower)
    shared = [seed for seed in ours if seed in base]
    mine, theirs = (_parts(name, [of_arm[seed] for seed in shared]) for of_arm in (ours, base))
    return Cell(value, difference(mine, theirs) if shared else None, lower)


def _parts(name: str, of_seeds: Iterable[Measures]) -> list[np.ndarray]:
    """The values [seeds, queries] of a measure; of each task, if it is a mean over tasks."""
    measures = list(of_seeds)
    if name.startswith("loss/"):
        return [np.array([[one.losses[name.removeprefix("loss/")]] for one in measures])]
    parts = averages(measures[0].queries).get(name, [name]) if measures else []
    return [np.array([[*one.queries[part].values()] for one in measures]) for part in parts]


def sentence(comparison: Comparison) -> str:
    """What the main measure shows, and no more than its intervals say."""
    plan, name = comparison.plan, comparison.main
    groups = list(dict.fromkeys(arm.group for arm in plan.arms))
    if plan.axis and len(groups) > 1:
        return _best_of_each_group(comparison, groups)
    verdicts: dict[str, list[str]] = {"better": [], "worse": [], "": []}
    for arm in plan.arms[1:]:
        cell = comparison.cells.get(arm.name, {}).get(name)
        if cell is not None:
            verdicts[cell.verdict].append(f"{arm.name} ({shown(cell.difference, name, sign=True)})")
    said = [f"{word}: {', '.join(verdicts[word])}" for word in ("better", "worse") if verdicts[word]]
    unsure = len(verdicts[""])
    if not any(verdicts.values()):
        return "There is nothing to compare with the base yet."
    start = f"{label(name).capitalize()}, compared with {plan.base.name}. "
    if not said:
        return f"{start}No difference is shown: every interval holds 0, or there is no interval."
    rest = [f"no difference is shown for {unsure} other arm{'s' * (unsure > 1)}"] * bool(unsure)
    claims = "; ".join([*said, *rest])
    return f"{start}{claims[0].upper()}{claims[1:]}."


def _best_of_each_group(comparison: Comparison, groups: Sequence[str]) -> str:
    """The arm with the best mean in each group; whether it is surely the best is for the intervals of the figure."""
    name, parts = comparison.main, []
    for group in groups:
        arms = [arm for arm in comparison.plan.arms if arm.group == group and arm.name in comparison.cells]
        if arms:
            sign = 1 if name.startswith("loss/") else -1
            best = min(arms, key=lambda arm: sign * comparison.cells[arm.name][name].value.mean)
            parts.append(f"{group} at {best.at:g} ({shown(comparison.cells[best.name][name].value, name)})")
    return f"{label(name).capitalize()}, the best mean of each: {', '.join(parts)}."


def cautions(comparison: Comparison) -> list[str]:
    """What limits the intervals of this ablation, in sentences."""
    compared = [
        cell
        for arm, cells in comparison.cells.items()
        for name, cell in cells.items()
        if name in comparison.columns and cell.difference is not None and not math.isnan(cell.difference.low)
    ]
    sure = sum(bool(cell.verdict) for cell in compared)
    sentences = []
    if max(comparison.seeds.values()) == 1:
        sentences.append(
            "There is one seed: intervals are over queries alone, and another training could move every arm. Losses "
            "have no interval."
        )
    else:
        sentences.append(
            "Intervals are over seeds and queries. Shared stages were trained once: how far another training of those "
            "would move the arms is not in the intervals."
        )
    if compared:
        sentences.append(
            f"{sure} of {len(compared)} differences in the table exclude 0; where nothing differs, about "
            f"{len(compared) / 20:.0f} would do so by chance."
        )
    return sentences


def label(name: str) -> str:
    """A measure in words."""
    if name.startswith("loss/"):
        return f"held-out loss of {name.removeprefix('loss/')}"
    what = "likelihood of the right answer" if name.endswith(LIKELIHOOD) else "score"
    task, _, shots = name.removesuffix(LIKELIHOOD).rpartition("-")
    return f"{what} at {shots.removesuffix('shot')} shots" + (f", {task}" if task else "")


def digits(name: str) -> int:
    """Decimals that a measure is shown with: points have one, nats three."""
    return 3 if name.startswith("loss/") or name.endswith(LIKELIHOOD) else 1


def shown(interval: Interval | None, name: str, *, sign: bool = False) -> str:
    """`12.3 [10.1, 14.5]`, or the number alone where there is no interval."""
    if interval is None or math.isnan(interval.mean):
        return "-"
    shape = f"{'+' if sign else ''}.{digits(name)}f"
    text = f"{interval.mean:{shape}}"
    if not math.isnan(interval.low):
        text += f" [{interval.low:{shape}}, {interval.high:{shape}}]"
    return text.replace("-", MINUS)

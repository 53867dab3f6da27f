"""What the results of an evaluation show and what they don't, in sentences.

Sentences are computed from intervals: one claims an effect only if its interval excludes zero.
"""

import math
from dataclasses import dataclass

from mm1.eval.caption_loss import CaptionLoss
from mm1.eval.metrics.statistics import Interval
from mm1.eval.results import Results, TaskScore

MINUS = "\N{MINUS SIGN}"


def format_interval(interval: Interval | None, sign: bool = False) -> str:
    """`12.3 [10.1, 14.5]`, or a dash if there is no interval."""
    if interval is None or math.isnan(interval.mean):
        return "-"
    shape = "+.1f" if sign else ".1f"
    return f"{interval.mean:{shape}} [{interval.low:{shape}}, {interval.high:{shape}}]".replace("-", MINUS)


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence on what the results of a task show or don't show, and the figures that it rests on."""

    task: str
    verdict: str
    figures: str
    shown: bool


def findings(results: Results) -> list[Finding]:
    """For each task: do examples (shots) help, does the model look at the picture, is it above guessing."""
    sentences: list[Finding] = []
    for task, cells in by_task(results).items():
        scored = [cell for cell in cells if not math.isnan(cell.score.mean)]
        if scored:
            sentences += [*_gain(task, scored), _looking(task, scored), _prior(task, scored)]
    return sentences + [_loss(loss) for loss in results.losses]


def by_task(results: Results) -> dict[str, list[TaskScore]]:
    """The scores of each task and protocol, in the order of their shots."""
    groups: dict[str, list[TaskScore]] = {}
    for cell in results.scores:
        groups.setdefault(f"{cell.task} {cell.protocol}".strip(), []).append(cell)
    return groups


def _gain(task: str, cells: list[TaskScore]) -> list[Finding]:
    most = cells[-1]
    if most.gain is None or math.isnan(most.gain.mean):
        return []
    change = f"{format_interval(most.gain, sign=True)} points"
    figures = f"{most.shots} shots against {cells[0].shots}: {change}."
    if most.gain.above_zero:
        return [Finding(task, "Examples in the prompt help.", figures, True)]
    if most.gain.below_zero:
        return [Finding(task, "Examples in the prompt do harm.", figures, True)]
    return [
        Finding(
            task, "Whether examples in the prompt help is not shown.", f"{figures[:-1]}; the interval holds 0.", False
        )
    ]


def _looking(task: str, cells: list[TaskScore]) -> Finding:
    sure = [cell for cell in cells if cell.difference.above_zero]
    differences = ", ".join(f"{format_interval(cell.difference, sign=True)} at {cell.shots} shots" for cell in cells)
    figures = f"own picture against another one: {differences}."
    if len(sure) == len(cells):
        return Finding(task, "The model looks at the picture.", figures, True)
    if sure:
        shots = " and ".join(str(cell.shots) for cell in sure)
        return Finding(
            task, f"The model looks at the picture at {shots} shots; elsewhere that is not shown.", figures, True
        )
    return Finding(task, "That the model looks at the picture is not shown.", figures, False)


def _prior(task: str, cells: list[TaskScore]) -> Finding:
    best = max(cells, key=lambda cell: cell.score.mean)
    figures = (
        f"best score {format_interval(best.score)} ({best.metric} x 100, {best.shots} shots); always answering "
        f"“{best.majority_answer.strip()}” scores {best.majority:.1f}, a random training answer {best.chance:.1f}, "
        f"the model with another picture {best.blind.mean:.1f}."
    )
    if best.score.low > max(best.majority, best.chance):
        return Finding(task, "The model is above guessing.", figures, True)
    return Finding(task, "That the model is above guessing is not shown.", figures, False)


def _loss(loss: CaptionLoss) -> Finding:
    margin = f"{loss.margin.mean:+.3f} [{loss.margin.low:+.3f}, {loss.margin.high:+.3f}]".replace("-", MINUS)
    figures = (
        f"loss of the right text: {loss.right.mean:.3f} nats per token after its own picture, "
        f"{loss.wrong.mean:.3f} after another one ({margin})."
    )
    if loss.margin.above_zero:
        return Finding(loss.task, "The picture informs the text.", figures, True)
    return Finding(loss.task, "That the picture informs the text is not shown.", figures, False)

"""What the results of an evaluation show and what they don't, in sentences.

Sentences are computed from intervals: one claims an effect only if its interval excludes zero.
"""

import math

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


def findings(results: Results) -> list[str]:
    """Sentences for each task: do examples help, does the model look at the picture, is it above guessing."""
    sentences = []
    for task in dict.fromkeys(cell.task for cell in results.scores):
        cells = [cell for cell in results.scores if cell.task == task]
        sentences += _gain_sentence(task, cells) + _looking_sentence(task, cells) + _prior_sentence(task, cells)
    return sentences + [_loss_sentence(loss) for loss in results.losses]


def _gain_sentence(task: str, cells: list[TaskScore]) -> list[str]:
    most = cells[-1]
    if most.gain is None:
        return []
    fewest, change = cells[0].shots, f"{format_interval(most.gain, sign=True)} points"
    start = f"{task}, {most.shots} shots against {fewest}: {change}."
    if most.gain.above_zero:
        return [f"{start} The examples helped."]
    if most.gain.below_zero:
        return [f"{start} The examples did harm."]
    return [f"{start} The interval holds 0: whether examples help is not shown."]


def _looking_sentence(task: str, cells: list[TaskScore]) -> list[str]:
    sure = [cell for cell in cells if cell.difference.above_zero]
    differences = ", ".join(f"{format_interval(cell.difference, sign=True)} at {cell.shots} shots" for cell in cells)
    start = f"{task}, own picture against another one: {differences}."
    if len(sure) == len(cells):
        return [f"{start} The model looks at the picture."]
    if sure:
        shots = " and ".join(str(cell.shots) for cell in sure)
        return [f"{start} The model looks at {shots} shots; elsewhere that is not shown."]
    return [f"{start} That the model looks at the picture is not shown."]


def _prior_sentence(task: str, cells: list[TaskScore]) -> list[str]:
    best = max(cells, key=lambda cell: cell.score.mean)
    start = (
        f"{task}, best score {format_interval(best.score)} ({best.shots} shots); always answering "
        f"“{best.majority_answer}” scores {best.majority:.1f}, a random training answer {best.chance:.1f}."
    )
    if best.score.low > max(best.majority, best.chance):
        return [f"{start} The model is above both."]
    return [f"{start} The model is not surely above both."]


def _loss_sentence(loss: CaptionLoss) -> str:
    margin = f"{loss.margin.mean:+.3f} [{loss.margin.low:+.3f}, {loss.margin.high:+.3f}]".replace("-", MINUS)
    start = (
        f"{loss.task}, loss of the right text: {loss.right.mean:.3f} nats per token after its own picture, "
        f"{loss.wrong.mean:.3f} after another one ({margin})."
    )
    if loss.margin.above_zero:
        return f"{start} The picture informs the text."
    return f"{start} That the picture informs the text is not shown."

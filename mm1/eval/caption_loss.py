"""How much the right picture lowers the loss of its text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mm1.document import Document, Text
from mm1.eval.fewshot import Example
from mm1.eval.metrics.scores import Interval, bootstrap, paired_difference
from mm1.generate.writer import Writer


@dataclass(frozen=True, slots=True)
class CaptionLoss:
    """Nats per token of the right text after its own picture and after another one's; means over texts.

    `margin` is wrong - right: above 0 when the right picture helps.
    """

    task: str
    texts: int
    right: Interval
    wrong: Interval
    margin: Interval
    model_name: str


def caption_loss(
    writer: Writer,
    right: Sequence[Example],
    *,
    wrong: Sequence[Example],
    task: str,
    model_name: str,
    seed: int,
    done: Callable[[int], None] = lambda rows: None,
) -> CaptionLoss:
    """How much the right picture lowers the loss of its text; `wrong` is the same with pictures exchanged."""
    with_right, with_wrong = (writer.losses([_captioned(one) for one in each], done=done) for each in (right, wrong))
    return CaptionLoss(
        task=task,
        texts=len(right),
        right=bootstrap(with_right, seed=seed),
        wrong=bootstrap(with_wrong, seed=seed),
        margin=paired_difference(with_wrong, with_right, seed=seed),
        model_name=model_name,
    )


def _captioned(example: Example) -> Document:
    """The example's picture and its first answer, as captions are trained."""
    return Document((example.image, Text(example.answers[0])))

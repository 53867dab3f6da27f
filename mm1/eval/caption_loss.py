"""How much the right image lowers the loss of its text."""

from collections.abc import Sequence
from dataclasses import dataclass

from mm1.document import Document, Text
from mm1.eval.blind import exchange_images
from mm1.eval.fewshot import Example, Task
from mm1.eval.metrics.statistics import Interval, bootstrap, paired_difference
from mm1.eval.models import Ours
from mm1.generate.writer import Done


@dataclass(frozen=True, slots=True)
class CaptionLoss:
    """Nats per token of the right text after its own image and after another one's; means over texts.

    `margin` is wrong - right: above 0 if the right image helps.
    """

    task: str
    texts: int
    right: Interval
    wrong: Interval
    margin: Interval
    model_name: str


def caption_loss(model: Ours, task: Task, *, seed: int, done: Done) -> CaptionLoss:
    """The loss of each query's right answer after its own image, and after another query's image."""
    wrong_images = exchange_images(task.queries, seed=seed)
    right, wrong = (model.writer.losses(_captions(queries), done=done) for queries in (task.queries, wrong_images))
    return CaptionLoss(
        task=task.name,
        texts=len(task.queries),
        right=bootstrap(right, seed=seed),
        wrong=bootstrap(wrong, seed=seed),
        margin=paired_difference(wrong, right, seed=seed),
        model_name=model.name,
    )


def _captions(examples: Sequence[Example]) -> list[Document]:
    """The image and the first answer of each example, in the form of training captions."""
    return [Document((example.image, Text(example.answers[0]))) for example in examples]

"""POPE: is an object in the image? The score is accuracy; F1 and the share of yes are totals."""

from mm1.eval.data.examples import Columns
from mm1.eval.data.original_releases import Reader, listed, several
from mm1.eval.data.published import Published, Source
from mm1.eval.fewshot import Scoring
from mm1.eval.metrics.answer_parsing import yes_or_no
from mm1.eval.metrics.short_answers import pope_scores, same_word


def _file(category: str) -> Reader:
    """The file of one of the three ways in which absent objects were selected."""
    return listed(f"coco_pope_{category}.json", image="{image}", folders=("val2014",), question="text", answer="label")


task = Published(
    name="pope",
    kind="choice",
    source=Source(
        paper="https://arxiv.org/abs/2305.10355",
        hub="lmms-lab/POPE",
        queries=("test",),
        original=several(
            "category", random=_file("random"), popular=_file("popular"), adversarial=_file("adversarial")
        ),
    ),
    columns=Columns(
        id=lambda row: f"{row['category']}/{row['question_id']}", answers="answer", answer_set=("yes", "no")
    ),
    scoring=Scoring(
        same_word,
        parse=lambda text, query: yes_or_no(text),
        totals=lambda queries, answers, scores: pope_scores(answers, [query.answers[0] for query in queries]),
    ),
)

"""ChartQA, test, by relaxed accuracy; also by itself for questions written by people and by a model."""

from mm1.eval.data.examples import Columns
from mm1.eval.data.original_releases import listed, several
from mm1.eval.data.published import Published, Source
from mm1.eval.data.release_files import Reader
from mm1.eval.fewshot import Scoring
from mm1.eval.metrics.short_answers import relaxed_accuracy


def _file(kind: str) -> Reader:
    """One of the two files of a split: `human` or `augmented` (written by a model)."""
    return listed(f"{{short}}_{kind}.json", image="{imgname}", folders=("png",), question="query", answer="label")


task = Published(
    name="chartqa",
    kind="vqa",
    source=Source(
        paper="https://arxiv.org/abs/2203.10244",
        hub="lmms-lab-encoder/ChartQA",
        queries=("test",),
        shots=("train",),
        original=several("type", human=_file("human"), augmented=_file("augmented")),
    ),
    columns=Columns(id="#", answers="answer", metadata=("type",), picture="imgname"),
    scoring=Scoring(relaxed_accuracy, part=lambda query: query.metadata["type"].partition("_")[0]),
)

"""`mm1 eval` of an encoder: retrieval, nearest neighbours and a probe, as a table and in `eval/encoder.json`."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from mm1 import dist
from mm1.disk import write_whole
from mm1.eval.encoders.categories import attentive_probe, nearest_neighbours
from mm1.eval.encoders.encoder import Encoder, open_encoder
from mm1.eval.encoders.labelled import read_labelled
from mm1.eval.encoders.retrieval import retrieve
from mm1.eval.metrics.statistics import bootstrap

TASKS = ("retrieval", "knn", "probe")
"""The tasks of an encoder. Others ask a language model."""

FILE = "encoder.json"


@dataclass(frozen=True, slots=True)
class EncoderScore:
    """A measure in percent with its 95 % interval over queries; `baseline` is what the commonest category gets."""

    task: str
    measure: str
    data: str
    queries: int
    mean: float
    low: float
    high: float
    baseline: float | None = None


@dataclass(frozen=True, slots=True)
class EncoderCommand:
    """The call of `mm1 eval` for an encoder."""

    address: str
    tasks: tuple[str, ...]
    data: str = ""
    limit: int = 200
    seed: int = 0
    precision: dist.Precision = "auto"

    def run(self, folder: Path) -> list[EncoderScore]:
        """Score the encoder, print the table, and write the scores to `folder`, beside those of earlier calls.

        Raises:
            ValueError: there is no encoder or no such data, or retrieval is asked of one without a text tower.
        """
        if dist.world() > 1:
            raise ValueError("an encoder is scored by one process; leave torchrun out")
        encoder = open_encoder(self.address, precision=self.precision)
        scores = [score for task in self.tasks for score in self.score(encoder, task)]
        earlier = read_scores(folder)
        replaced = {(score.task, score.data) for score in scores}
        kept = [score for score in earlier if (score.task, score.data) not in replaced]
        folder.mkdir(parents=True, exist_ok=True)
        record = {"encoder": encoder.name, "scores": [asdict(score) for score in [*kept, *scores]]}
        write_whole(folder / FILE, json.dumps(record, indent=1) + "\n")
        Console().print(table(scores, encoder.name))
        return scores

    def score(self, encoder: Encoder, task: str) -> list[EncoderScore]:
        """The scores of one task."""
        if task == "retrieval":
            store = self.data or "sample:captions-test"
            hits = retrieve(encoder, store, limit=self.limit, seed=self.seed)
            return [self._score(task, measure, store, right) for measure, right in hits.items()]
        labelled = read_labelled(self.data).limited(self.limit, seed=self.seed)
        measures: dict[str, Callable[[], np.ndarray]] = {
            "knn": lambda: nearest_neighbours(encoder, labelled),
            "probe": lambda: attentive_probe(encoder, labelled, seed=self.seed),
        }
        measure = f"right of {len(labelled.names)} categories"
        return [self._score(task, measure, labelled.origin, measures[task](), baseline=labelled.majority)]

    def _score(
        self, task: str, measure: str, data: str, right: np.ndarray, *, baseline: float | None = None
    ) -> EncoderScore:
        interval = bootstrap(100 * right, seed=self.seed)
        return EncoderScore(task, measure, data, len(right), interval.mean, interval.low, interval.high, baseline)


def read_scores(folder: Path) -> list[EncoderScore]:
    """The scores of earlier calls in a folder."""
    path = folder / FILE
    return [EncoderScore(**score) for score in json.loads(path.read_text())["scores"]] if path.is_file() else []


def table(scores: list[EncoderScore], name: str) -> Table:
    """Scores for a terminal."""
    data = ", ".join(dict.fromkeys(score.data for score in scores))
    shown = Table(title=f"{name} on {data}", title_justify="left")
    shown.add_column("task")
    shown.add_column("measure")
    for column in ("queries", "score [95 %]", "commonest"):
        shown.add_column(column, justify="right", no_wrap=True)
    for score in scores:
        interval = f"{score.mean:.1f} [{score.low:.1f}, {score.high:.1f}]"
        baseline = "" if score.baseline is None else f"{score.baseline:.1f}"
        shown.add_row(score.task, score.measure, f"{score.queries:,}", interval, baseline)
    return shown

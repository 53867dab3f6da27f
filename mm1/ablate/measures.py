"""What is measured of each run: `measures.json` in its folder, and `results.csv` of all runs.

`results.csv` has the columns `arm,seed,measure,value,parameters,learning_rate`, one line for each measure of each run
that is finished, in the order of `ablation.json`. Measures are

    loss/STORE               held-out loss, in nats per token
    TASK-Nshot               score of a task with N shots, in points: accuracy in percent, CIDEr times 100
    TASK-Nshot-likelihood    mean log-likelihood of the right answer, in nats per token
    Nshot, Nshot-likelihood  the mean over the tasks, as the paper prints it

`parameters` (of the decoder, without embeddings) and `learning_rate` (its peak) are the facts of the arm.
"""

import csv
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mm1.ablate.plan import Plan, PlannedRun
from mm1.checkpoint import load_for_use
from mm1.config.ablation import Evaluation
from mm1.disk import write_whole
from mm1.eval.answer_likelihood import answer_likelihood
from mm1.eval.harness import evaluate, load_task
from mm1.eval.models import Ours, model_name
from mm1.eval.results import mean_scores
from mm1.eval.task_evaluation import Settings
from mm1.objectives.index import generates_text
from mm1.train.log import last_validation, read_metrics

FILE = "measures.json"
COLUMNS = ("arm", "seed", "measure", "value", "parameters", "learning_rate")
LIKELIHOOD = "-likelihood"


@dataclass(frozen=True, slots=True)
class Measures:
    """What was measured of one run: `losses` by store, and the value of each query by measure and query."""

    losses: dict[str, float]
    queries: dict[str, dict[str, float]]

    def means(self) -> dict[str, float]:
        """The value of each measure, with the means over tasks."""
        means = {f"loss/{store}": loss for store, loss in self.losses.items()}
        means |= {name: sum(of.values()) / len(of) for name, of in self.queries.items()}
        for name, parts in averages(self.queries).items():
            means[name] = sum(means[part] for part in parts) / len(parts)
        return means


def averages(measures: dict[str, dict[str, float]]) -> dict[str, list[str]]:
    """The measures of all tasks that each mean over tasks is taken of: `4shot` -> [`captions-4shot`, ...]."""
    parts: dict[str, list[str]] = {}
    for name in measures:
        _, _, rest = name.partition("-")
        parts.setdefault(rest, []).append(name)
    return parts


def measure(run: PlannedRun, folder: Path, evaluation: Evaluation) -> None:
    """Score the trained run in `folder` and write `measures.json`, unless it is there with the same settings."""
    if read_measures(folder, evaluation) is not None:
        return
    queries: dict[str, dict[str, float]] = {}
    if evaluation.tasks and generates_text(run.run):
        queries = _ask(folder, evaluation)
    measures = Measures(last_validation(read_metrics(folder)), queries)
    write_whole(folder / FILE, json.dumps(asdict(measures) | {"evaluation": asdict(evaluation)}) + "\n")


def _ask(folder: Path, evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """Each query's score and likelihood, by measure."""
    loaded = load_for_use(folder)
    model = Ours(loaded.model, loaded.tokenizer, name=model_name(loaded))
    tasks = [
        load_task(name, limit=evaluation.limit, seed=evaluation.seed, data=evaluation.data) for name in evaluation.tasks
    ]
    settings = Settings(folder / "eval", seed=evaluation.seed, limit=evaluation.limit)
    results = evaluate(model, tasks, settings=settings, shots=evaluation.shots)
    queries = {}
    for score in results.scores:
        if score.task in evaluation.tasks and score.shots in evaluation.shots:
            queries[f"{score.task}-{score.shots}shot"] = mean_scores(settings.folder, score)
    for task in tasks:
        for shots in evaluation.shots:
            nats = answer_likelihood(model, task, shots=shots, seed=evaluation.seed)
            queries[f"{task.name}-{shots}shot{LIKELIHOOD}"] = nats
    return queries


def read_measures(folder: Path, evaluation: Evaluation) -> Measures | None:
    """The measures of the run in `folder`; None if it was not measured, or by another evaluation."""
    path = folder / FILE
    if not path.is_file():
        return None
    data = json.loads(path.read_text())
    if data["evaluation"] != json.loads(json.dumps(asdict(evaluation))):
        return None
    return Measures(data["losses"], data["queries"])


def all_measures(plan: Plan, folder: Path) -> dict[str, dict[int, Measures]]:
    """The measures of all finished runs, by arm and seed."""
    return {
        arm.name: {
            seed: measures
            for seed, name in arm.runs.items()
            if (measures := read_measures(folder / name, plan.evaluation)) is not None
        }
        for arm in plan.arms
    }


def write_results(plan: Plan, folder: Path) -> Path:
    """Write `results.csv` of all runs that are finished, and return its path."""
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(COLUMNS)
    measured = all_measures(plan, folder)
    for arm in plan.arms:
        for seed, measures in measured[arm.name].items():
            for name, value in measures.means().items():
                lines.writerow([arm.name, seed, name, repr(value), arm.parameters, repr(arm.learning_rate)])
    path = folder / "results.csv"
    write_whole(path, file.getvalue())
    return path

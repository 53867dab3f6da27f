"""Few-shot scores of a model: build the prompts, get the answers, score them, keep all of it.

The unit of work is a file of answers: one task at one number of shots, in one trial. The ranks that torchrun started
share these files out. Replies that a folder keeps are not asked for again; they are read and scored anew.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mm1 import dist
from mm1.checkpoint import Loaded
from mm1.eval.caption_loss import caption_loss
from mm1.eval.data.published import Published, by_likelihood
from mm1.eval.fewshot import Task
from mm1.eval.index import find_task
from mm1.eval.model import Model
from mm1.eval.models import Ours, model_name
from mm1.eval.pace import Pace
from mm1.eval.results import Answer, Results, read_results, save_results
from mm1.eval.shots import reasoning_task
from mm1.eval.task_evaluation import Settings, TaskEvaluation

PATIENCE = timedelta(days=7)
"""How long a rank waits for the others, which may have more to answer."""

AnswerJob = Callable[[], Path]
"""Makes a file of answers and returns its path."""


def evaluate_run(loaded: Loaded, *, tasks: Sequence[str], shots: Sequence[int], limit: int, seed: int) -> Results:
    """The results of a trained run: everything in its `eval/summary.json` after this call.

    Raises:
        ValueError: an unknown task, or more shots than a task has examples.
    """
    return evaluate(
        Ours(loaded.model, loaded.tokenizer, name=model_name(loaded)),
        [load_task(task.strip(), limit=limit, seed=seed) for task in tasks],
        settings=Settings(loaded.folder / "eval", seed=seed, limit=limit),
        shots=shots,
    )


def load_task(name: str, *, limit: int, seed: int, **published: Any) -> Task:
    """The task of `tasks/NAME.py` with at most `limit` queries.

    `published` has the options of `Published`: `data`, the folder of the data set, `split`, `form`, `rules` and
    `zero_shot`. Empty means the default.

    Raises:
        ValueError: an unknown task, or data that can't be scored.
    """
    make_task = find_task(name)
    options = {key: value for key, value in published.items() if value}
    if not isinstance(make_task, Published):
        options.pop("zero_shot", None)  # nothing has to be fetched for shots
    taken = options if isinstance(make_task, Published) else inspect.signature(make_task).parameters
    if unknown := [key for key in options if key not in taken]:
        flags = " and ".join("--protocol" if key == "rules" else f"--{key}" for key in unknown)
        raise ValueError(f"task {name} has its own data and form; leave {flags} out, which only published tasks take")
    return make_task(limit, seed=seed, **options)


def evaluate(model: Model, tasks: Sequence[Task], *, settings: Settings, shots: Sequence[int] = (0, 4, 8)) -> Results:
    """The results of a model, together with earlier ones of the same model in the folder.

    A reply that the folder keeps, of the same model to the same request, is not asked for again: a stopped call can be
    continued, and a change of the rules that read and score replies counts at once. With several ranks each first makes
    its share of the files, then rank 0 sums up.

    Raises:
        ValueError: shots that can't be drawn or shown, or a judge that is missing or gives no score.
    """
    settings.folder.mkdir(parents=True, exist_ok=True)
    results = read_results(settings.folder, model_name=model.name)
    with _progress() as progress:
        evaluations = _evaluations(model, tasks, settings=settings, progress=progress)
        if dist.world() > 1:
            _make_own_share(evaluations, shots)
            if dist.rank():
                return results
        pace = Pace(sum(evaluation.work(shots) for evaluation in evaluations), tell=progress.console.print)
        for evaluation in evaluations:
            evaluation.pace = pace
            if evaluation.task.submission is not None:
                results.files += [make_file() for make_file in _jobs([evaluation], shots)]
                continue
            answers: dict[int, list[list[Answer]]] = {}
            for count in sorted(set(shots)):
                answers[count] = [evaluation.answers(count, trial) for trial in range(evaluation.trials(count))]
                fewest = answers[min(answers)] if len(answers) > 1 else None
                results.put(evaluation.score(count, answers[count], fewest=fewest))
                save_results(results, settings.folder)
            if evaluation.task.loss and isinstance(model, Ours):
                _put_loss(results, evaluation, model=model)
                save_results(results, settings.folder)
    return results


def answer_jobs(model: Model, tasks: Sequence[Task], *, settings: Settings, shots: Sequence[int]) -> list[AnswerJob]:
    """One job per file of answers, the longest prompts first.

    Raises:
        ValueError: a task needs a judge, and there is none.
    """
    settings.folder.mkdir(parents=True, exist_ok=True)
    return _jobs(_evaluations(model, tasks, settings=settings, progress=_progress()), shots)


def _evaluations(
    model: Model, tasks: Sequence[Task], *, settings: Settings, progress: Progress
) -> list[TaskEvaluation]:
    return [
        TaskEvaluation(_under_protocol(task, settings), model, settings=settings, progress=progress) for task in tasks
    ]


def _under_protocol(task: Task, settings: Settings) -> Task:
    """`task` with the changes that the protocol of this call makes to it."""
    if task.scoring.judge is not None and settings.judge is None:
        raise ValueError(f"task {task.name} is scored by a judge: give --judge http://.../v1 (and --judge-model)")
    if settings.protocol.scoring == "loglikelihood":
        task = by_likelihood(task)
    task = reasoning_task(task) if settings.protocol.reasoning else task
    if settings.protocol.max_tokens:
        task = replace(task, style=replace(task.style, max_tokens=settings.protocol.max_tokens))
    return task


def _jobs(evaluations: Sequence[TaskEvaluation], shots: Sequence[int]) -> list[AnswerJob]:
    return [
        functools.partial(evaluation.answer_file, count, trial)
        for count in sorted(set(shots), reverse=True)
        for evaluation in evaluations
        for trial in range(evaluation.trials(count))
    ]


def _make_own_share(evaluations: Sequence[TaskEvaluation], shots: Sequence[int]) -> None:
    """Make every world-th file of answers, then wait for the other ranks."""
    for make_file in _jobs(evaluations, shots)[dist.rank() :: dist.world()]:
        make_file()
    with dist.connected(patience=PATIENCE):
        dist.all_gather_object(None)


def _put_loss(results: Results, evaluation: TaskEvaluation, *, model: Ours) -> None:
    """Add how much the right image lowers the loss of its text."""
    task, progress = evaluation.task, evaluation.progress
    bar = progress.add_task(f"{task.name}  loss by picture", total=2 * len(task.queries))
    done = functools.partial(progress.advance, bar)
    loss = caption_loss(model, task, seed=evaluation.settings.seed, done=done)
    results.losses = [old for old in results.losses if old.task != task.name] + [loss]


def _progress() -> Progress:
    console = Console()
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )

"""Few-shot scores of a model: build the prompts, have them answered, score, keep all that was said.

A cell is one task at one number of shots. Cells are shared out over the ranks that torchrun started; what is
finished is not done again.
"""

import functools
import hashlib
import importlib
import json
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mm1 import dist
from mm1.checkpoint import Loaded
from mm1.data.tokenizer import Tokenizer
from mm1.disk import write_whole
from mm1.document import Document, Mark, Text
from mm1.eval import tasks as task_folder
from mm1.eval.caption_loss import caption_loss
from mm1.eval.data.published import Published, by_likelihood
from mm1.eval.fewshot import Task, blind, chance_answers, majority_answer
from mm1.eval.judge import Judge
from mm1.eval.metrics.scores import bootstrap, paired_difference
from mm1.eval.metrics.short_answers import LETTERS
from mm1.eval.models import Answerer, Ours, as_text, name_of
from mm1.eval.results import (
    Cell,
    Results,
    answers_file,
    cell_name,
    points,
    read_answers,
    read_lines,
    read_results,
    save,
    table,
)
from mm1.eval.shots import MM1, Protocol, Similar, draw_all, prompts, reasoning_task
from mm1.model.mllm import MLLM

__all__ = ["Cell", "Results", "evaluate", "evaluate_run", "load_task", "read_answers", "read_results", "table"]

CHANCE_DRAWS = 8

PATIENCE = timedelta(days=7)
"""How long a rank waits for one with more to answer."""

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Settings:
    """What all cells of one call share. `model_name` tells one set of weights from another."""

    folder: Path
    model_name: str
    seed: int = 0
    limit: int = 200
    with_blind: bool = True
    trials: int = 1
    protocol: Protocol = MM1
    judge: Judge | None = None


def evaluate_run(loaded: Loaded, *, tasks: Sequence[str], shots: Sequence[int], limit: int, seed: int) -> Results:
    """Results of a trained run: all that stand in its `eval/summary.json` after this call.

    Raises:
        ValueError: an unknown task, or more shots than a task has examples.
    """
    name = name_of(loaded)
    return evaluate_with(
        Ours(loaded.model, loaded.tokenizer, name=name),
        tasks=[load_task(task.strip(), limit=limit, seed=seed) for task in tasks],
        settings=Settings(loaded.folder / "eval", name, seed=seed, limit=limit),
        shots=shots,
    )


def load_task(name: str, *, limit: int, seed: int, **where: str) -> Task:
    """The task of `tasks/NAME.py`, at most `limit` queries; `where`: data, split and form of a published one.

    Raises:
        ValueError: an unknown task, or data that can't be scored.
    """
    known = sorted(module.name for module in pkgutil.iter_modules(task_folder.__path__))
    if name not in known:
        raise ValueError(f"no task {name!r}; known: {', '.join(known)}")
    found = importlib.import_module(f"{task_folder.__name__}.{name}").task
    given = {key: value for key, value in where.items() if value}
    if given and not isinstance(found, Published):
        raise ValueError(f"task {name} is of the shipped sample: it takes no {' or '.join(given)}")
    return found(limit, seed=seed, **given)


def evaluate(
    model: MLLM,
    tokenizer: Tokenizer,
    *,
    tasks: Sequence[Task],
    settings: Settings,
    shots: Sequence[int] = (0, 4, 8),
    rows: int = 32,
) -> Results:
    """Results of `model`, `rows` prompts side by side; see `evaluate_with`."""
    answerer = Ours(model, tokenizer, name=settings.model_name, rows=rows)
    return evaluate_with(answerer, tasks=tasks, settings=settings, shots=shots)


def evaluate_with(
    answerer: Answerer, *, tasks: Sequence[Task], settings: Settings, shots: Sequence[int] = (0, 4, 8)
) -> Results:
    """Results of whoever answers, with those of the same model that stood in the folder before.

    A file of answers that was written for the same model, prompts, references and decoding is read, not
    computed again: a call that was stopped continues. With several ranks each first answers its part; then
    rank 0 makes the summary of all.

    Raises:
        ValueError: shots that can't be drawn or shown, or a judge that is missing or gives no score.
    """
    settings.folder.mkdir(parents=True, exist_ok=True)
    results = read_results(settings.folder, model_name=settings.model_name)
    with _progress() as progress:
        asking = [_Asking(_as_asked(task, settings), answerer, settings, progress) for task in tasks]
        if dist.world() > 1:
            _answer_own_part(asking, shots)
            if dist.rank():
                return results
        for one in asking:
            lines: dict[int, list[list[Line]]] = {}
            for count in sorted(set(shots)):
                lines[count] = [one.lines(count, trial) for trial in range(one.trials(count))]
                results.put(one.cell(count, lines[count], fewest=lines[min(lines)] if len(lines) > 1 else None))
                save(results, settings.folder)
            if one.task.loss and isinstance(answerer, Ours):
                _put_loss(results, one.task, answerer, settings, progress)
                save(results, settings.folder)
    return results


def _as_asked(task: Task, settings: Settings) -> Task:
    """`task` under the protocol of this call."""
    if task.judge is not None and settings.judge is None:
        raise ValueError(f"task {task.name} is scored by a judge: give --judge http://.../v1 (and --judge-model)")
    if settings.protocol.scoring == "loglikelihood":
        task = by_likelihood(task)
    return reasoning_task(task) if settings.protocol.reasoning else task


def parts(
    answerer: Answerer, *, tasks: Sequence[Task], settings: Settings, shots: Sequence[int]
) -> list[Callable[[], Path]]:
    """What makes each file of answers, unless it is there, and says where it is; most shots first.

    Raises:
        ValueError: a judge that is missing.
    """
    settings.folder.mkdir(parents=True, exist_ok=True)
    return _parts([_Asking(_as_asked(task, settings), answerer, settings, _progress()) for task in tasks], shots)


def _parts(asking: Sequence["_Asking"], shots: Sequence[int]) -> list[Callable[[], Path]]:
    return [
        functools.partial(one.made, count, trial)
        for count in sorted(set(shots), reverse=True)
        for one in asking
        for trial in range(one.trials(count))
    ]


def _answer_own_part(asking: Sequence["_Asking"], shots: Sequence[int]) -> None:
    """Answer every world-th file, then wait for the other ranks."""
    for make in _parts(asking, shots)[dist.rank() :: dist.world()]:
        make()
    with dist.connected(patience=PATIENCE):
        dist.all_gather_object(None)


def _put_loss(results: Results, task: Task, answerer: Ours, settings: Settings, progress: Progress) -> None:
    """Add how much the right picture lowers the loss of its text."""
    bar = progress.add_task(f"{task.name}  loss by picture", total=2 * len(task.queries))
    found = caption_loss(
        answerer.writer,
        task.queries,
        wrong=blind(task.queries, seed=settings.seed),
        task=task.name,
        model_name=settings.model_name,
        seed=settings.seed,
        done=functools.partial(progress.advance, bar),
    )
    results.losses = [old for old in results.losses if old.task != task.name] + [found]


class _Asking:
    """One task, asked of one model under the settings of a call."""

    def __init__(self, task: Task, answerer: Answerer, settings: Settings, progress: Progress):
        self.task, self.answerer, self.settings, self.progress = task, answerer, settings, progress
        self.similar = None
        if settings.protocol.draw == "similar":
            self.similar = Similar(task, answerer.features, settings.seed)
        self.references = [query.answers for query in task.queries]
        self.exchanged = blind(task.queries, seed=settings.seed) if settings.with_blind else []

    def trials(self, shots: int) -> int:
        """Without shots, or with the most similar ones, all trials are one."""
        drawn = shots or self.settings.protocol.text_only
        return self.settings.trials if drawn and self.settings.protocol.draw != "similar" else 1

    def made(self, shots: int, trial: int) -> Path:
        """The file of one trial's answers, finished."""
        self.lines(shots, trial)
        return self._file(shots, trial)

    def _file(self, shots: int, trial: int) -> Path:
        name = cell_name(self.task.name, shots, self.settings.protocol.name)
        return self.settings.folder / answers_file(name, trial)

    def lines(self, shots: int, trial: int) -> list[Line]:
        """The answers of one trial: from their file when that is of the same settings, else newly written."""
        task, protocol = self.task, self.settings.protocol
        drawn = draw_all(task, shots=shots, seed=self.settings.seed + trial, protocol=protocol, similar=self.similar)
        asked = prompts(task, task.queries, drawn=drawn, shots=shots, protocol=protocol)
        if self.exchanged:
            asked += prompts(task, self.exchanged, drawn=drawn, shots=shots, protocol=protocol)
        mark = self._mark(asked)
        path = self._file(shots, trial)
        bar = self.progress.add_task(f"{task.name}  {shots} shots", total=len(asked))
        known = _finished(path, mark, queries=len(task.queries))
        if known is not None:
            self.progress.update(bar, completed=len(asked))
            return known
        answers = self._answers(asked, done=functools.partial(self.progress.advance, bar))
        count = len(task.queries)
        scores = self._scores(answers[:count])
        blind_scores = self._scores(answers[count:]) if self.exchanged else None
        lines = [
            {
                "query": query.id,
                "prompt": _hash(asked[number]),
                "request": as_text(asked[number]),
                "shots": [shot.id for shot in drawn[number]] if shots else [],
                "answer": answers[number],
                "references": list(query.answers),
                "score": scores[number],
                "blind_answer": None if blind_scores is None else answers[count + number],
                "blind_score": None if blind_scores is None else blind_scores[number],
                "places": self.answerer.places(asked[number]),
                "settings": mark,
            }
            for number, query in enumerate(task.queries)
        ]
        write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        return lines

    def _answers(self, asked: Sequence[Document], *, done) -> list[str]:
        """The answer to be scored of each prompt; the second half belongs to the same queries, blind."""
        queries = [self.task.queries[number % len(self.task.queries)] for number in range(len(asked))]
        if self.settings.protocol.scoring == "loglikelihood":
            found = self.answerer.likelihoods(asked, choices=[query.choices for query in queries], done=done)
            return [LETTERS[int(np.argmax(nats))] for nats in found]
        beams = self.settings.protocol.beams
        written = self.answerer.write(asked, stops=self.task.stops, longest=self.task.longest, done=done, beams=beams)
        return [self.task.answer(text, query) for text, query in zip(written, queries, strict=True)]

    def _scores(self, answers: Sequence[str]) -> list[float]:
        judge, rule = self.settings.judge, self.task.judge
        if rule is None or judge is None:
            return self.task.metric(answers, self.references).tolist()
        return [judge.score(rule, query, answer) for query, answer in zip(self.task.queries, answers, strict=True)]

    def cell(self, shots: int, trials: list[list[Line]], *, fewest: list[list[Line]] | None) -> Cell:
        """The scores of one number of shots, with those that need no model beside them."""
        task, settings = self.task, self.settings
        scores = np.mean([points(lines, "score") for lines in trials], axis=0)
        blind_scores = None
        if settings.with_blind:
            blind_scores = np.mean([points(lines, "blind_score") for lines in trials], axis=0)
        gained = None if fewest is None else scores - np.mean([points(lines, "score") for lines in fewest], axis=0)
        guess = majority_answer(task)
        draws = CHANCE_DRAWS if task.judge is None else 1
        guessed = [chance_answers(task, seed=settings.seed, draw=draw) for draw in range(draws)]
        return Cell(
            task=task.name,
            shots=shots,
            queries=len(task.queries),
            score=bootstrap(scores, seed=settings.seed),
            blind=None if blind_scores is None else bootstrap(blind_scores, seed=settings.seed),
            difference=None if blind_scores is None else paired_difference(scores, blind_scores, seed=settings.seed),
            gain=None if gained is None else bootstrap(gained, seed=settings.seed),
            majority=100 * float(np.mean(self._scores([guess] * len(scores)))),
            majority_answer=guess,
            chance=100 * float(np.mean([self._scores(answers) for answers in guessed])),
            longest_prompt=max(line["places"] for lines in trials for line in lines),
            model_name=settings.model_name,
            seed=settings.seed,
            limit=settings.limit,
            protocol=settings.protocol.name,
            trials=len(trials),
            std=_std_of_means(trials),
            totals=self._totals(trials, guess=guess, guessed=guessed),
            judge=settings.judge.name if settings.judge is not None and task.judge is not None else "",
        )

    def _totals(self, trials: list[list[Line]], *, guess: str, guessed: list[list[str]]) -> dict[str, dict[str, float]]:
        """Scores of all answers together, by name; for the model, blind, majority and chance alike."""
        totals = self.task.totals
        if totals is None:
            return {}
        sets = {
            "score": [[line["answer"] for line in lines] for lines in trials],
            "majority": [[guess] * len(self.task.queries)],
            "chance": guessed,
        }
        if self.settings.with_blind:
            sets["blind"] = [[line["blind_answer"] for line in lines] for lines in trials]
        found: dict[str, dict[str, float]] = {}
        for of, answer_sets in sets.items():
            parts = [totals(self.task.queries, one, np.array(self._scores(one))) for one in answer_sets]
            for name in parts[0]:
                found.setdefault(name, {})[of] = float(np.mean([part[name] for part in parts]))
        return found

    def _mark(self, asked: Sequence[Document]) -> str:
        """A name for all that decides the answers and scores of a file."""
        task, judge = self.task, self.settings.judge
        decides = {
            "model": self.settings.model_name,
            "prompts": [_hash(document) for document in asked],
            "references": self.references,
            "choices": [query.choices for query in task.queries],
            "decoding": [task.stops, task.longest, self.settings.protocol.scoring, self.settings.protocol.beams],
            "scoring": [task.metric.__name__, getattr(task.clean, "__qualname__", ""), judge.name if judge else ""],
        }
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]


def _std_of_means(trials: list[list[Line]]) -> float | None:
    """The deviation of the trials' means, in points; None of a single one."""
    means = [points(lines, "score").mean() for lines in trials]
    return float(np.std(means, ddof=1)) if len(means) > 1 else None


def _finished(path: Path, mark: str, *, queries: int) -> list[Line] | None:
    """The lines of a finished file; None when there is none of these settings."""
    if not path.is_file():
        return None
    lines = read_lines(path)
    same = len(lines) == queries and all(line.get("settings") == mark for line in lines)
    return lines if same else None


def _hash(prompt: Document) -> str:
    """A name for a prompt: its texts, its marks and its pictures."""
    digest = hashlib.sha256()
    for piece in prompt.pieces:
        kind = type(piece).__name__
        data = piece.text if isinstance(piece, Text) else piece.name if isinstance(piece, Mark) else piece.data
        digest.update(hashlib.sha256(data if isinstance(data, bytes) else f"{kind} {data}".encode()).digest())
    return digest.hexdigest()[:16]


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

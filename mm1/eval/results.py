"""Results of an evaluation on disk and as tables: `summary.json`, and the files of answers.

Scores of a task are in the points that papers print: accuracy in percent, CIDEr times 100. The score of a single answer
is the metric's own (0 to 1; CIDEr 0 to 10).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from mm1.disk import write_whole
from mm1.eval.caption_loss import CaptionLoss
from mm1.eval.metrics.statistics import Interval, Weighted, lowest
from mm1.eval.rules import rules_of


@dataclass(frozen=True, slots=True)
class SentPrompt:
    """The prompt of a query as the model got it: its hash, its text for people to read, the ids of its shots.

    `tokens` is 0 if the model doesn't tell.
    """

    hash: str
    text: str
    shots: list[str]
    tokens: int


@dataclass(frozen=True, slots=True)
class ScoredText:
    """An answer and its score; None if the judge's reply can't be read.

    `problem` says why there is no answer, see `mm1.eval.model.Reply`; `weight` how much the score counts in the mean.
    """

    text: str
    score: float | None
    problem: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model answered to one query, with its own image and blind, that is with another query's image.

    Answers of one `group` count as one query; each query is its own group by default.
    """

    query: str
    references: list[str]
    prompt: SentPrompt
    own: ScoredText
    blind: ScoredText
    group: str = ""

    @property
    def text(self) -> str:
        return self.own.text

    @property
    def score(self) -> float | None:
        return self.own.score

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Answer":
        """The answer in one line of a file."""
        prompt = SentPrompt(record["prompt"], record["request"], record["shots"], record["places"])
        own, blind = (
            ScoredText(
                record[f"{of}answer"],
                record[f"{of}score"],
                record.get(f"{of}problem", ""),
                record.get(f"{of}weight", 1.0),
            )
            for of in ("", "blind_")
        )
        group = record.get("group", record["query"])
        return cls(record["query"], record["references"], prompt, own, blind, group)

    def record(self) -> dict[str, Any]:
        """The answer as one line of a file. Its keys, `places` too, are those of 0.1, whose files can still be read."""
        problems = {"problem": self.own.problem, "blind_problem": self.blind.problem}
        weights = {"weight": self.own.weight, "blind_weight": self.blind.weight}
        return {
            "query": self.query,
            "prompt": self.prompt.hash,
            "request": self.prompt.text,
            "shots": self.prompt.shots,
            "answer": self.own.text,
            "references": self.references,
            "score": self.own.score,
            "blind_answer": self.blind.text,
            "blind_score": self.blind.score,
            "places": self.prompt.tokens,
            **{name: problem for name, problem in problems.items() if problem},
            **{name: weight for name, weight in weights.items() if weight != 1},
        } | ({"group": self.group} if self.group != self.query else {})


@dataclass(frozen=True, slots=True)
class TaskScore:
    """One task at one number of shots; scores in points, with 95 % intervals.

    Several trials differ in their shots: then scores are means over the trials, and `std` is the standard deviation of
    the trials' means.
    """

    task: str
    shots: int
    queries: int
    score: Interval
    blind: Interval  # with another query's image
    difference: Interval  # score - blind, paired by query: above 0, the model uses the image
    gain: Interval | None  # over the fewest shots of the same call, paired by query
    majority: float  # of the commonest training answer
    majority_answer: str
    chance: float  # of the answer of a random training example, or of a random choice
    longest_prompt: int  # in tokens; 0 if the model doesn't tell
    model_name: str
    seed: int
    limit: int
    protocol: str = ""  # what differs from the default
    trials: int = 1
    std: float | None = None
    totals: dict[str, dict[str, float]] = field(default_factory=dict)  # of all answers: score, blind, majority, chance
    judge: str = ""
    judge_prompt: str = ""  # the question that the judge is asked: mm1's, or a file's name and hash
    data: str = ""  # the data set, its number of rows, and a hash of their ids and answers
    split: str = ""
    form: str = ""
    metric: str = ""
    max_tokens: int = 0  # of an answer
    counted: dict[str, int] = field(default_factory=dict)  # what is odd about rows and answers, and in how many
    rules: str = ""  # a hash of the code that read and scored the answers

    @property
    def name(self) -> str:
        """The name of its files."""
        return score_name(self.task, self.shots, protocol=self.protocol)

    @property
    def files(self) -> list[str]:
        """One file of answers per trial."""
        return [answers_file(self.name, trial) for trial in range(self.trials)]


@dataclass(slots=True)
class Results:
    """All scores of a model, and how much the right image lowers the loss of its caption.

    `files` are those that this call wrote for the servers of benchmarks with hidden answers.
    """

    scores: list[TaskScore] = field(default_factory=list)
    losses: list[CaptionLoss] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def put(self, score: TaskScore) -> None:
        """Add `score`, or replace an older one of the same task, shots and protocol."""
        kept = [old for old in self.scores if old.name != score.name]
        self.scores = sorted([*kept, score], key=lambda one: (one.task, one.shots, one.protocol))


def score_name(task: str, shots: int, *, protocol: str) -> str:
    """The name of a score within a folder."""
    return f"{task}-{shots}shot" + (f"-{protocol}" if protocol else "")


def answers_file(name: str, trial: int) -> str:
    """The file with the answers of one trial behind the score `name`."""
    return f"{name}-trial{trial}.jsonl" if trial else f"{name}.jsonl"


def read_answers(folder: Path, score: TaskScore, *, trial: int = 0) -> list[Answer]:
    """The answers of one trial behind `score`."""
    return [Answer.from_record(record) for record in _records(folder / score.files[trial])]


def read_answers_of(path: Path, *, mark: str, queries: int) -> list[Answer]:
    """The answers in `path`; none if there is no such file, or it is of other prompts or another model (`mark`)."""
    records = _records(path) if path.is_file() else []
    if len(records) != queries or any(record.get("settings") != mark for record in records):
        return []
    return [Answer.from_record(record) for record in records]


def write_answers(path: Path, answers: Sequence[Answer], *, mark: str) -> None:
    """Write one JSON line per answer; `mark` is a hash of what was sent, and to which model."""
    lines = [json.dumps({**answer.record(), "settings": mark}, ensure_ascii=False) for answer in answers]
    write_whole(path, "".join(line + "\n" for line in lines))


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def read_results(folder: Path, *, model_name: str | None = None) -> Results:
    """The results in `folder/summary.json`, those of `model_name` only if it is given; empty if there is no file."""
    path = folder / "summary.json"
    if not path.is_file():
        return Results()
    data = json.loads(path.read_text())
    results = Results(
        scores=[TaskScore(**_intervals(record)) for record in data["cells"]],
        losses=[CaptionLoss(**_intervals(record)) for record in data["losses"]],
    )
    if model_name is not None:
        results.scores = [score for score in results.scores if score.model_name == model_name]
        results.losses = [loss for loss in results.losses if loss.model_name == model_name]
    return results


def save_results(results: Results, folder: Path) -> None:
    """Write `summary.json`."""
    data = {
        "cells": [asdict(score) for score in results.scores],
        "losses": [asdict(loss) for loss in results.losses],
    }
    write_whole(folder / "summary.json", json.dumps(_without_nan(data), indent=1, ensure_ascii=False) + "\n")


WIDE = 118
"""Characters of a line from which the table of scores has each interval beside its mean."""


def score_table(results: Results, *, width: int = WIDE) -> Table:
    """The few-shot table for a terminal: every score with its interval and the blind score beside it.

    Below WIDE characters intervals stand under their means, so that 80 are enough.
    """
    is_wide = width >= WIDE
    options: dict[str, Any] = {} if is_wide else {"box": None, "padding": (0, 1, 0, 0), "pad_edge": False}
    title = "few-shot scores" if any(one.shots for one in results.scores) else "scores"
    table = Table(title=title, title_justify="left", caption_justify="left", **options)
    metrics = ", ".join(dict.fromkeys(f"{one.task}: {one.metric}" for one in results.scores))
    table.caption = f"x 100 of {metrics}; " if metrics else ""
    table.caption += (
        "[..] 95 % interval; ± standard deviation over trials; blind: another query's image; "
        "difference: score - blind, paired; majority, chance: the commonest and random training answers"
    )
    columns = ("task", "shots", "queries", "score", "blind", "difference")
    for name in columns + (("majority", "chance") if is_wide else ("majority\nchance",)):
        is_task = name == "task"
        least = 18 if is_task else None
        table.add_column(
            name, justify="left" if is_task else "right", overflow="fold", no_wrap=not is_task, min_width=least
        )

    def add(task: str, *cells: str, guesses: tuple[str, ...] = ()) -> None:
        last = guesses if is_wide else ("\n".join(guesses),)
        table.add_row(task, *(cell if is_wide else cell.replace(" \\[", "\n\\[") for cell in cells), *last)

    for one in results.scores:
        difference = shown(one.difference, sign=True)
        if one.difference.above_zero:
            difference = f"[green]{difference}[/green]"
        task = f"{one.task} ({one.protocol})" if one.protocol else one.task
        score = shown(one.score) + (f"\n± {one.std:.1f}" if one.std is not None else "")
        guesses = (f"{one.majority:.1f}", f"{one.chance:.1f}")
        add(task, str(one.shots), str(one.queries), score, shown(one.blind), difference, guesses=guesses)
        for name, values in one.totals.items():
            score, blind, majority, chance = (
                f"{values[of]:.1f}" if of in values else "-" for of in ("score", "blind", "majority", "chance")
            )
            add(f"  {name}", "", "", score, blind, "", guesses=(majority, chance))
        for name, count in one.counted.items():
            add(f"  {name}", "", str(count))
        if one.rules != rules_of(one.task):
            add("  under other scoring rules than today's: ask again")
    return table


def mean_scores(folder: Path, score: TaskScore) -> dict[str, float]:
    """Points of each query, the mean over the trials; nan for one that the judge gave no score."""
    groups, of_groups = points_of(folder, score)
    return dict(zip(groups, of_groups.scores.tolist(), strict=True))


def points_of(folder: Path, score: TaskScore) -> tuple[list[str], Weighted]:
    """The queries behind `score`, and the points of each, the mean over the trials."""
    trials = [read_answers(folder, score, trial=trial) for trial in range(score.trials)]
    groups = list(dict.fromkeys(answer.group for answer in trials[0]))
    return groups, Weighted.over([grouped_points(answers) for answers in trials])


def grouped_points(answers: Sequence[Answer], *, blind: bool = False) -> Weighted:
    """The points of each group of answers, those of its worst answer; nan for one that the judge gave no score."""
    texts = [answer.blind if blind else answer.own for answer in answers]
    return lowest_points(scores_of(texts), [answer.group for answer in answers])


def lowest_points(scores: Weighted, groups: Sequence[str]) -> Weighted:
    """The points of each group of scores, those of its lowest."""
    # only judges give weights, and no judge scores queries that count as one
    return Weighted(100 * lowest(scores.scores.tolist(), groups), scores.weights)


def scores_of(texts: Sequence[ScoredText]) -> Weighted:
    """The scores of these answers; nan for one that the judge gave no score."""
    scores = np.array([math.nan if text.score is None else text.score for text in texts])
    is_weighted = any(text.weight != 1 for text in texts)
    return Weighted(scores, np.array([text.weight for text in texts]) if is_weighted else None)


def shown(interval: Interval, *, sign: bool = False) -> str:
    """The mean and the interval for a terminal."""
    shape = "+.1f" if sign else ".1f"
    return f"{interval.mean:{shape}} \\[{interval.low:{shape}}, {interval.high:{shape}}]"


def _without_nan(value: Any) -> Any:
    """`value` for JSON, which has no nan: a score that there is none of is null."""
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _intervals(record: dict[str, Any]) -> dict[str, Any]:
    """A record of `summary.json` with its intervals, and nan for a baseline that no score could be read of."""
    none: dict[str, Any] = {
        name: math.nan for name in ("majority", "chance") if name in record and record[name] is None
    }
    intervals = {
        name: Interval(**{end: math.nan if one is None else one for end, one in value.items()})
        for name, value in record.items()
        if isinstance(value, dict) and "low" in value
    }
    return {**record, **none, **intervals}

"""One task, asked of one model: its replies, kept or newly obtained, the answers read from them, and their scores."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import Progress, TaskID

from mm1.disk import write_whole
from mm1.document import Document
from mm1.eval.baselines import chance_answers, majority_answer
from mm1.eval.blind import exchange_images
from mm1.eval.fewshot import REPEATED, Example, Judged, Task
from mm1.eval.judge import Judge
from mm1.eval.metrics.answer_parsing import after_thoughts
from mm1.eval.metrics.statistics import Weighted
from mm1.eval.model import Model, Reply, Request, name_of, prompt_hash, prompt_text
from mm1.eval.pace import Pace
from mm1.eval.replies import KeptReplies
from mm1.eval.results import (
    Answer,
    ScoredText,
    SentPrompt,
    TaskScore,
    answers_file,
    grouped_points,
    lowest_points,
    read_answers_of,
    score_name,
    scores_of,
    write_answers,
)
from mm1.eval.rules import rules_of
from mm1.eval.shots import DEFAULT, Protocol, SimilarShots, draw_all, prompts

CHANCE_DRAWS = 8


@dataclass(frozen=True, slots=True)
class Settings:
    """What all tasks of one call share: the folder of the results, and how the model is asked."""

    folder: Path
    seed: int = 0
    limit: int = 200
    trials: int = 1
    protocol: Protocol = DEFAULT
    judge: Judge | None = None


@dataclass(frozen=True, slots=True)
class Guesses:
    """The baselines' answers: the majority answer, and several draws of random answers to all queries."""

    majority: str
    chance: list[list[str]]


class TaskEvaluation:
    """One task, asked of one model under the settings of a call."""

    def __init__(self, task: Task, model: Model, *, settings: Settings, progress: Progress):
        self.task, self.model, self.settings, self.progress = task, model, settings, progress
        self.similar, self.pace = None, Pace(0, tell=lambda text: None)
        if settings.protocol.draw == "similar":
            self.similar = SimilarShots(task, model.features, settings.seed)
        self.references = [query.answers for query in task.queries]
        self.metric = task.scoring.metric
        if task.scoring.within is not None:
            self.metric = task.scoring.within(task.split_references or self.references)
        self.blind_queries = [] if task.submission else exchange_images(task.queries, seed=settings.seed)

    def work(self, shots: Sequence[int]) -> int:
        """How many pictures all requests at these numbers of shots have, about."""
        pictures = sum(self.trials(count) * (1 + count) for count in set(shots))
        return pictures * (len(self.task.queries) + len(self.blind_queries))

    def trials(self, shots: int) -> int:
        """The number of trials: 1 without shots or with similar shots, as nothing is drawn then."""
        is_drawn = shots or self.settings.protocol.text_only_shots
        return self.settings.trials if is_drawn and self.settings.protocol.draw != "similar" else 1

    def answer_file(self, shots: int, trial: int) -> Path:
        """The file with the answers of one trial; for a split with hidden answers, the file for its server."""
        if self.task.submission is not None:
            return self.submission_file(shots, trial)
        self.answers(shots, trial)
        return self._path(shots, trial)

    def submission_file(self, shots: int, trial: int) -> Path:
        """The file that the benchmark's server takes. Where no answer can be read, it has what was written."""
        task, settings = self.task, self.settings
        assert task.submission is not None
        drawn = draw_all(
            task, shots=shots, seed=settings.seed + trial, protocol=settings.protocol, similar=self.similar
        )
        own = prompts(task, task.queries, drawn=drawn, shots=shots, protocol=settings.protocol, tiles=self.model.tiles)
        path = self._path(shots, trial)
        bar = self.progress.add_task(f"{task.name}  {shots} shots", total=len(own))
        written = self._replies(own, KeptReplies(path.parent / "replies" / path.name, self.model), bar)
        file = path.with_name(f"{path.stem}-submission.{task.submission.ending}")
        pairs = zip(task.queries, written, strict=True)
        # a server takes one answer to each id
        first = [(query, reply.text) for query, reply in pairs if REPEATED not in query.odd]
        write_whole(file, task.submission.content([query for query, _ in first], [text for _, text in first]))
        return file

    def _path(self, shots: int, trial: int) -> Path:
        name = score_name(self.task.name, shots, protocol=self.settings.protocol.name)
        return self.settings.folder / answers_file(name, trial)

    def answers(self, shots: int, trial: int) -> list[Answer]:
        """The answers of one trial: what the model replied, now or in an earlier call, read and scored by the rules."""
        task, protocol = self.task, self.settings.protocol
        drawn = draw_all(task, shots=shots, seed=self.settings.seed + trial, protocol=protocol, similar=self.similar)
        tiles = self.model.tiles
        own = prompts(task, task.queries, drawn=drawn, shots=shots, protocol=protocol, tiles=tiles)
        blind = prompts(task, self.blind_queries, drawn=drawn, shots=shots, protocol=protocol, tiles=tiles)
        documents, path = [*own, *blind], self._path(shots, trial)
        mark = self._mark(documents)
        earlier = read_answers_of(path, mark=mark, queries=len(task.queries))
        bar = self.progress.add_task(f"{task.name}  {shots} shots", total=len(documents))
        replies = self._replies(documents, KeptReplies(path.parent / "replies" / path.name, self.model), bar)
        own_texts, blind_texts = self._scored(replies[: len(own)]), self._scored(replies[len(own) :])
        shown = [[shot.id for shot in examples] if shots else [] for examples in drawn]
        sent = [answer.prompt for answer in earlier] or [
            SentPrompt(prompt_hash(document), prompt_text(document), ids, self.model.prompt_tokens(document))
            for document, ids in zip(own, shown, strict=True)
        ]
        answers = [
            Answer(query.id, list(query.answers), prompt, own_text, blind_text, group)
            for query, prompt, own_text, blind_text, group in zip(
                task.queries, sent, own_texts, blind_texts, task.groups(), strict=True
            )
        ]
        if answers != earlier:
            write_answers(path, answers, mark=mark)
        return answers

    def _replies(self, documents: Sequence[Document], kept: KeptReplies, bar: TaskID) -> list[Reply]:
        """The answer to be scored for each prompt: first the prompts of all queries, then their blind ones."""
        task, style, protocol = self.task, self.task.style, self.settings.protocol
        queries = [*task.queries, *task.queries][: len(documents)]
        ranks_choices = protocol.scoring == "loglikelihood"
        requests = [
            Request(document, style.stops, style.max_tokens, protocol.beams, query.choices if ranks_choices else ())
            for document, query in zip(documents, queries, strict=True)
        ]
        missing, pictures = kept.missing(requests), len(documents[0].images)
        self.pace.skip((len(requests) - missing) * pictures)
        self.pace.begin()

        def replied(number: int, reply: Reply) -> None:
            self.pace.reply(pictures)
            self.progress.advance(bar)

        replies = kept.answer(requests, done=replied)
        self.progress.update(bar, completed=len(requests))  # equal requests are asked once
        return [
            reply if reply.problem or ranks_choices else Reply(self._read(reply.text, query))
            for reply, query in zip(replies, queries, strict=True)
        ]

    def _read(self, written: str, query: Example) -> str:
        """The answer to be scored or, if a server scores, what it can read; both without the model's thoughts.

        Where the task has a rule for it, the judge reads the answer out of the text first.
        """
        written = after_thoughts(written)
        rule, judge = self.task.scoring.extract, self.settings.judge
        if rule is not None and judge is not None:
            written = judge.extract(rule, query, written=written)
        answer = self.task.answer(written, query)
        return answer or written.strip() if self.task.submission is not None else answer

    def _scored(self, replies: Sequence[Reply]) -> list[ScoredText]:
        """The answers with their scores. A reply with a problem has 0, at the weight of an empty answer."""
        scored = []
        judgements = self._judgements([reply.text for reply in replies])
        for reply, judged in zip(replies, judgements, strict=True):
            points = 0.0 if reply.problem else None if math.isnan(judged.score) else judged.score
            scored.append(ScoredText(reply.text, points, reply.problem, judged.weight))
        return scored

    def _judgements(self, answers: Sequence[str]) -> list[Judged]:
        """The score of the answer to each query; nan where the judge's reply can't be read."""
        judge, rule = self.settings.judge, self.task.scoring.judge
        if rule is None or judge is None:
            return [Judged(score) for score in self.metric(answers, self.references).tolist()]
        pairs = zip(self.task.queries, answers, strict=True)
        return [judge.score(rule, query, answer=answer) for query, answer in pairs]

    def _scores(self, answers: Sequence[str]) -> Weighted:
        """The same as numbers, for answers that no model wrote."""
        judgements = self._judgements(answers)
        weights = None if self.task.scoring.judge is None else np.array([one.weight for one in judgements])
        return Weighted(np.array([one.score for one in judgements]), weights)

    @property
    def _judge(self) -> Judge | None:
        """The judge, if it has a part in the scores of this task."""
        scoring = self.task.scoring
        return None if scoring.judge is None and scoring.extract is None else self.settings.judge

    def score(self, shots: int, trials: list[list[Answer]], *, fewest: list[list[Answer]] | None) -> TaskScore:
        """The score of one number of shots, with the baselines' beside it, and its gain over the fewest shots."""
        task, settings = self.task, self.settings
        own, blind = _mean_points(trials), _mean_points(trials, blind=True)
        queries = len(own.scores)
        if settings.judge is not None and np.isnan(own.scores).all():
            raise ValueError(f"judge {settings.judge.name} gave no score that can be read to any of {queries} answers")
        draws = CHANCE_DRAWS if task.scoring.judge is None else 1
        guesses = Guesses(
            majority_answer(task), [chance_answers(task, seed=settings.seed, draw=draw) for draw in range(draws)]
        )
        return TaskScore(
            task=task.name,
            shots=shots,
            queries=queries,
            score=own.bootstrap(seed=settings.seed),
            blind=blind.bootstrap(seed=settings.seed),
            difference=own.difference(blind, seed=settings.seed),
            gain=None if fewest is None else own.difference(_mean_points(fewest), seed=settings.seed),
            majority=self._mean([guesses.majority] * len(task.queries)),
            majority_answer=guesses.majority,
            chance=float(np.mean([self._mean(answers) for answers in guesses.chance])),
            longest_prompt=max(answer.prompt.tokens for answers in trials for answer in answers),
            model_name=self.model.name,
            seed=settings.seed,
            limit=settings.limit,
            protocol=settings.protocol.name,
            trials=len(trials),
            std=_std_of_means(trials),
            totals=self._totals(trials, guesses),
            judge="" if self._judge is None else self._judge.name,
            judge_prompt="" if self._judge is None else self._judge.prompt_name,
            data=task.origin.data,
            split=task.origin.split,
            form=task.style.form,
            metric="judge" if task.scoring.judge is not None else task.scoring.metric.__name__,
            max_tokens=task.style.max_tokens,
            counted=_counted(task, trials),
            rules=rules_of(task.name),
        )

    def _mean(self, answers: Sequence[str]) -> float:
        """The mean points of one answer to each query."""
        return lowest_points(self._scores(answers), self.task.groups()).mean()

    def _totals(self, trials: list[list[Answer]], guesses: Guesses) -> dict[str, dict[str, float]]:
        """Scores of all answers together, by name; for the model, blind, majority and chance."""
        if self.task.scoring.totals is None and self.task.scoring.part is None:
            return {}
        own = [[answer.own for answer in answers] for answers in trials]
        blind = [[answer.blind for answer in answers] for answers in trials]
        majority = [guesses.majority] * len(self.task.queries)
        answer_sets = {
            "score": [([one.text for one in texts], scores_of(texts)) for texts in own],
            "majority": [(majority, self._scores(majority))],
            "chance": [(answers, self._scores(answers)) for answers in guesses.chance],
            "blind": [([one.text for one in texts], scores_of(texts)) for texts in blind],
        }
        totals: dict[str, dict[str, float]] = {}
        for of, sets in answer_sets.items():
            by_set = [self._totals_of(answers, scores) for answers, scores in sets]
            for name in by_set[0]:
                totals.setdefault(name, {})[of] = float(np.mean([of_set[name] for of_set in by_set]))
        return totals

    def _totals_of(self, answers: Sequence[str], scores: Weighted) -> dict[str, float]:
        """The mean points of each part of the task, and the task's own totals."""
        scoring = self.task.scoring
        means: dict[str, float] = {}
        if scoring.part is not None:
            parts = np.array([scoring.part(query) for query in self.task.queries])
            means = {part: 100 * scores.at(parts == part).mean() for part in sorted(set(parts.tolist()))}
        own = {} if scoring.totals is None else scoring.totals(self.task.queries, answers, scores.scores)
        return means | own

    def _mark(self, documents: Sequence[Document]) -> str:
        """A hash of what was sent, and to which model."""
        sent = [self.model.name, *map(prompt_hash, documents)]
        return hashlib.sha256(json.dumps(sent).encode()).hexdigest()[:16]


def _counted(task: Task, trials: Sequence[Sequence[Answer]]) -> dict[str, int]:
    """How many rows are left out, rows are odd, and answers say nothing that can be scored, by a short name each."""
    counts = Counter({f"left out: {name}": count for name, count in task.origin.left_out.items()})
    counts.update(name for query in task.queries for name in query.odd)
    answers = [answer for trial in trials for answer in trial]
    counts["no answer read"] = sum(not answer.text and not answer.own.problem for answer in answers)
    counts.update(name_of(answer.own.problem) for answer in answers if answer.own.problem)
    counts.update(f"{name_of(answer.blind.problem)} (blind)" for answer in answers if answer.blind.problem)
    counts["unread by the judge"] = sum(answer.score is None for answer in answers)
    return {name: count for name, count in counts.items() if count}


def _mean_points(trials: Sequence[Sequence[Answer]], *, blind: bool = False) -> Weighted:
    """Points of each query, or of each group that counts as one, the mean over the trials."""
    return Weighted.over([grouped_points(answers, blind=blind) for answers in trials])


def _std_of_means(trials: Sequence[Sequence[Answer]]) -> float | None:
    """The standard deviation of the trials' means, in points; None for a single trial."""
    means = [grouped_points(answers).mean() for answers in trials]
    return float(np.std(means, ddof=1)) if len(means) > 1 else None

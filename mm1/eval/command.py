"""One call of `mm1 eval`: open the model, load the tasks, score, print the table, write the page."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from mm1 import dist
from mm1.cluster import Runner
from mm1.eval.answers_page import write_page
from mm1.eval.catalogue import task_table
from mm1.eval.comparison import compare, comparison_table
from mm1.eval.data.styles import SEARCH
from mm1.eval.encoders import command as encoders
from mm1.eval.fewshot import Task
from mm1.eval.harness import AnswerJob, answer_jobs, evaluate, load_task
from mm1.eval.http_model import HttpModel
from mm1.eval.judge import Judge, JudgePrompt
from mm1.eval.model import Model
from mm1.eval.models import Ours, open_model
from mm1.eval.ray_workers import answer_on_ray
from mm1.eval.results import score_table
from mm1.eval.shots import DEFAULT, Protocol
from mm1.eval.task_evaluation import Settings

TEXT = "text"
"""The name of MM1's text suite among the tasks."""


@dataclass(frozen=True, slots=True)
class ModelAddress:
    """A run's folder, sample:NAME, hf:FOLDER, or a server's http://... and its model there; `precision` is for runs."""

    address: str
    model: str = ""
    precision: dist.Precision = "auto"

    def open(self, *, with_images: bool = True) -> Model:
        """The model there."""
        return open_model(self.address, model=self.model, with_images=with_images, precision=self.precision)


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """Which tasks are asked; `data`, `split` and `form` are for published ones, and empty for their defaults."""

    names: tuple[str, ...]
    limit: int = 200
    seed: int = 0
    data: str = ""
    split: str = ""
    form: str = ""


@dataclass(frozen=True, slots=True)
class ShotOptions:
    """How many shots there are, how often they are drawn, and how they are selected and shown."""

    counts: tuple[int, ...] = (0, 4, 8)
    trials: int = 1
    protocol: Protocol = DEFAULT


@dataclass(frozen=True, slots=True)
class EvalCommand:
    """The command line of `mm1 eval`."""

    model: ModelAddress
    tasks: TaskOptions
    shots: ShotOptions
    judge: ModelAddress
    judge_prompt: Path | None
    to: Path | None
    runner: Runner

    def run(self) -> None:
        """Score the model, print the table, write the files.

        Raises:
            ValueError: options that don't go together, or what `evaluate` raises.
        """
        self._check()
        if self.tasks.names[0] in encoders.TASKS:
            self._score_encoder()
            return
        tasks = self._tasks()
        model = self.model.open(with_images=bool(tasks))
        console = Console()
        if TEXT in self.tasks.names:
            self._score_text(model, console)
        if not tasks:
            return
        settings = self._settings()
        if self.runner.kind == "ray":
            count = len(answer_jobs(model, tasks, settings=settings, shots=self.shots.counts))
            answer_on_ray(self.jobs, count, runner=self.runner)
        results = evaluate(model, tasks, settings=settings, shots=self.shots.counts)
        if dist.rank() == 0:
            for path in results.files:
                console.print(f"for the benchmark's server: {path}", soft_wrap=True)
            for task in tasks:
                if task.submission is not None:
                    part = f"{len(task.queries)} of {task.origin.rows} questions"
                    console.print(f"{task.name}: {part}; {task.submission.server} takes all of them", soft_wrap=True)
            if not results.scores:
                return
            console.print(score_table(results, width=console.width))
            console.print(f"answers: {write_page(settings.folder, tasks, results=results)}", soft_wrap=True)

    def jobs(self) -> list[AnswerJob]:
        """One job per file of answers of this command, with a model that is opened for them."""
        model = self.model.open()
        return answer_jobs(model, self._tasks(), settings=self._settings(), shots=self.shots.counts)

    def _check(self) -> None:
        protocol = self.shots.protocol
        of_encoders = [name in encoders.TASKS for name in self.tasks.names]
        if any(of_encoders) and not all(of_encoders):
            raise ValueError(f"{', '.join(encoders.TASKS)} ask an encoder, other tasks a language model: two calls")
        if protocol.text_only_shots and self.shots.counts != (0,) and protocol.rules not in SEARCH:
            raise ValueError("--text-only-shots is the zero-shot form of other papers: give it with --shots 0")
        if protocol.beams > 1 and protocol.scoring == "loglikelihood":
            raise ValueError("--beams is for generated answers; --scoring loglikelihood generates none")
        if protocol.max_tokens and protocol.scoring == "loglikelihood":
            raise ValueError("--max-tokens is for generated answers; --scoring loglikelihood generates none")
        if self.judge_prompt is not None and (not self.judge.address or len(self.tasks.names) != 1):
            raise ValueError("--judge-prompt is the question to a judge about one task: give --judge, and one --tasks")
        if self.runner.kind == "ray" and dist.world() > 1:
            raise ValueError("torchrun and --runner ray are two ways to spread an evaluation; use one")
        if self.runner.kind == "native" and (self.runner.workers > 1 or self.runner.address):
            raise ValueError("--workers and --address are for --runner ray; here torchrun starts several processes")

    def _tasks(self) -> list[Task]:
        options = self.tasks
        return [
            load_task(
                name,
                limit=options.limit,
                seed=options.seed,
                data=options.data,
                split=options.split,
                form=options.form,
                zero_shot=max(self.shots.counts) == 0 and not self.shots.protocol.text_only_shots,
                rules="" if self.shots.protocol.rules == DEFAULT.rules else self.shots.protocol.rules,
            )
            for name in options.names
            if name != TEXT
        ]

    def _settings(self) -> Settings:
        judge = None
        if self.judge.address:
            prompt = None if self.judge_prompt is None else JudgePrompt.read(self.judge_prompt)
            judge = Judge(HttpModel(self.judge.address, model=self.judge.model), self._folder, prompt=prompt)
        return Settings(self._folder, self.tasks.seed, self.tasks.limit, self.shots.trials, self.shots.protocol, judge)

    def _score_encoder(self) -> None:
        tasks = self.tasks
        if self.runner.kind == "ray":
            raise ValueError("an encoder is scored by one process; leave --runner ray out")
        encoders.EncoderCommand(
            self.model.address, tasks.names, tasks.data, tasks.limit, tasks.seed, self.model.precision
        ).run(self._folder)

    def _score_text(self, model: Model, console: Console) -> None:
        if not isinstance(model, Ours):
            raise ValueError("--tasks text runs one of mm1's runs; lm-eval itself drives other models")
        from mm1.eval.text_suite import evaluate_text, text_table

        scores = evaluate_text(model, folder=self._folder, limit=self.tasks.limit)
        if dist.rank() == 0:
            console.print(text_table(scores))

    @property
    def _folder(self) -> Path:
        return (self.to or self._default_folder()) / "eval"

    def _default_folder(self) -> Path:
        """The run's own folder; for any other model a folder under `runs`."""
        address = self.model.address
        if address.startswith("sample:"):
            return Path("runs") / address.replace(":", "-")
        if address.startswith(("hf:", "http://", "https://")):
            return Path("runs") / re.sub(r"[^\w.-]+", "-", address.partition(":")[2] + self.model.model).strip("-")
        return Path(address)


def draw_of(*, same_shots: bool, similar_shots: bool) -> Literal["query", "same", "similar"]:
    """How shots are drawn by the two options.

    Raises:
        ValueError: both are given.
    """
    if same_shots and similar_shots:
        raise ValueError("--same-shots and --similar-shots are two ways to draw; give one")
    return "same" if same_shots else "similar" if similar_shots else "query"


def under_rules(protocol: Protocol) -> Protocol:
    """`protocol` with what the source of its rules sets and the caller did not."""
    beams, text_only = SEARCH.get(protocol.rules, (1, 0))
    return replace(
        protocol,
        beams=protocol.beams if protocol.beams > 1 else beams,
        text_only_shots=protocol.text_only_shots or text_only,
    )


def show_tasks() -> None:
    """Print all tasks."""
    Console().print(task_table())


def compare_runs(ours: Path, theirs: Path) -> None:
    """Print how two runs differ, score by score."""
    Console().print(comparison_table(compare(ours, theirs)))

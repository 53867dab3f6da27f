"""One call of `mm1 eval`: opens what answers, loads the tasks, scores them, prints the table, writes the page."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from mm1 import dist
from mm1.cluster import Runner
from mm1.eval.answers_page import write_page
from mm1.eval.fewshot import Task
from mm1.eval.harness import Settings, evaluate_with, load_task, parts
from mm1.eval.judge import Judge
from mm1.eval.models import Answerer, Ours, Server, open_answerer
from mm1.eval.ray_workers import Part, spread
from mm1.eval.results import compare, comparison, table
from mm1.eval.shots import Protocol

TEXT = "text"
"""The name of MM1's text suite among tasks."""


@dataclass(frozen=True, slots=True)
class Call:
    """What the command line said."""

    what: str
    tasks: tuple[str, ...]
    shots: tuple[int, ...]
    limit: int
    seed: int
    where: dict[str, str]
    trials: int
    draw: list[str]
    text_only: int
    reasoning: bool
    full: int | None
    scoring: Any
    beams: int
    judge: tuple[str, str]
    model: str
    to: Path | None
    runner: Runner

    def run(self) -> None:
        """Score, print and write.

        Raises:
            ValueError: options that don't fit together, or what `evaluate_with` raises.
        """
        tasks = self._tasks()
        if self.runner.kind == "ray" and dist.world() > 1:
            raise ValueError("torchrun and --runner ray are two ways to spread an evaluation; use one")
        if self.runner.kind == "native" and (self.runner.workers > 1 or self.runner.address):
            raise ValueError("--workers and --address are for --runner ray; here torchrun starts several processes")
        answerer = open_answerer(self.what, model=self.model, pictures=bool(tasks))
        console = Console()
        if TEXT in self.tasks:
            self._score_text(answerer, console)
        if not tasks:
            return
        settings = self._settings(answerer)
        if self.runner.kind == "ray":
            due = parts(answerer, tasks=tasks, settings=settings, shots=self.shots)
            spread(self.parts, len(due), runner=self.runner)
        results = evaluate_with(answerer, tasks=tasks, settings=settings, shots=self.shots)
        if dist.rank() == 0:
            console.print(table(results))
            console.print(f"answers: {write_page(settings.folder, tasks, results)}", soft_wrap=True)

    def parts(self) -> list[Part]:
        """What makes each file of answers of this call, with a model that is opened for it."""
        tasks = self._tasks()
        answerer = open_answerer(self.what, model=self.model)
        return parts(answerer, tasks=tasks, settings=self._settings(answerer), shots=self.shots)

    def _tasks(self) -> list[Task]:
        if len(self.draw) > 1:
            raise ValueError("--same-shots and --similar-shots are two ways to draw; give one")
        if self.text_only and self.shots != (0,):
            raise ValueError("--text-only-shots shows what stands for zero shots elsewhere: give it with --shots 0")
        if self.beams > 1 and self.scoring == "loglikelihood":
            raise ValueError("--beams is for written answers; choices by likelihood are not searched for")
        return [load_task(name, limit=self.limit, seed=self.seed, **self.where) for name in self.tasks if name != TEXT]

    def _settings(self, answerer: Answerer) -> Settings:
        draw: Any = self.draw[0] if self.draw else "query"
        protocol = Protocol(draw, self.text_only, self.reasoning, self.full, self.scoring, self.beams)
        judge = Judge(Server(self.judge[0], model=self.judge[1]), self._folder) if self.judge[0] else None
        return Settings(self._folder, answerer.name, self.seed, self.limit, True, self.trials, protocol, judge)

    def _score_text(self, answerer: Answerer, console: Console) -> None:
        if not isinstance(answerer, Ours):
            raise ValueError("--tasks text runs one of mm1's runs; lm-eval itself drives other models")
        from mm1.eval.text_suite import evaluate_text, text_table

        scores = evaluate_text(answerer, folder=self._folder, limit=self.limit)
        if dist.rank() == 0:
            console.print(text_table(scores))

    @property
    def _folder(self) -> Path:
        return (self.to or self._default()) / "eval"

    def _default(self) -> Path:
        """The run's own folder; of somebody else's model a folder of ours."""
        if self.what.startswith(("hf:", "http://", "https://")):
            return Path("runs") / re.sub(r"[^\w.-]+", "-", self.what.partition(":")[2] + self.model).strip("-")
        return Path(self.what)


def compare_runs(ours: Path, theirs: Path) -> None:
    """Print how two runs differ, cell by cell."""
    Console().print(comparison(compare(ours, theirs)))

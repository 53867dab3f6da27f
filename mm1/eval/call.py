"""One call of `mm1 eval`: opens what answers, loads the tasks, scores them, prints the table, writes the page."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from mm1 import dist
from mm1.eval.answerers import Ours, Server, open_answerer
from mm1.eval.cells import compare, comparison, table
from mm1.eval.harness import Settings, evaluate_with, load_task
from mm1.eval.judge import Judge
from mm1.eval.page import write_page
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
    by: Any
    judge: tuple[str, str]
    model: str
    to: Path | None

    def run(self) -> None:
        """Score, print and write.

        Raises:
            ValueError: options that don't fit together, or what `evaluate_with` raises.
        """
        if len(self.draw) > 1:
            raise ValueError("--same-shots and --similar-shots are two ways to draw; give one")
        if self.text_only and self.shots != (0,):
            raise ValueError("--text-shots shows what stands for zero shots elsewhere: give it with --shots 0")
        draw: Any = self.draw[0] if self.draw else "query"
        protocol = Protocol(draw, self.text_only, self.reasoning, self.full, self.by)
        tasks = [load_task(name, limit=self.limit, seed=self.seed, **self.where) for name in self.tasks if name != TEXT]
        answerer = open_answerer(self.what, model=self.model, pictures=bool(tasks))
        folder = (self.to or self._default()) / "eval"
        console = Console()
        if TEXT in self.tasks:
            if not isinstance(answerer, Ours):
                raise ValueError("--tasks text runs one of mm1's runs; lm-eval itself drives other models")
            from mm1.eval.text_suite import evaluate_text, text_table

            console.print(text_table(evaluate_text(answerer, folder=folder, limit=self.limit)))
        if not tasks:
            return
        judge = Judge(Server(self.judge[0], model=self.judge[1]), folder) if self.judge[0] else None
        settings = Settings(folder, answerer.name, self.seed, self.limit, True, self.trials, protocol, judge)
        results = evaluate_with(answerer, tasks=tasks, settings=settings, shots=self.shots)
        if dist.rank() == 0:
            console.print(table(results))
            console.print(f"answers: {write_page(folder, tasks, results)}", soft_wrap=True)

    def _default(self) -> Path:
        """The run's own folder; of somebody else's model a folder of ours."""
        if self.what.startswith(("hf:", "http://", "https://")):
            return Path("runs") / re.sub(r"[^\w.-]+", "-", self.what.partition(":")[2] + self.model).strip("-")
        return Path(self.what)


def compare_runs(ours: Path, theirs: Path) -> None:
    """Print how two runs differ, cell by cell."""
    Console().print(comparison(compare(ours, theirs)))

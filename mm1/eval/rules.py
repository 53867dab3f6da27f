"""Which version of the rules that read and score answers gave a score."""

import ast
import functools
from pathlib import Path

from mm1.eval.model import digest

EVAL = Path(__file__).parent
RULES = ("task_evaluation.py", "judge.py")
"""The files that read and score the answers of every task; what they import has other uses."""

FOLLOWED = ("shots.py", "data/published.py")
"""The same, and what these import has a part in it, as what the task imports."""

NO_RULES = ("metrics/statistics.py", "data/hub.py")
"""Files that tasks import which change no score: intervals are made of scores, and files are fetched."""


@functools.cache
def rules_of(task: str) -> str:
    """A short hash of the code that reads and scores the answers of a task."""
    left = [EVAL / "tasks" / f"{task}.py", *(EVAL / name for name in FOLLOWED)]
    files = {EVAL / name for name in RULES}
    while left:
        path = left.pop()
        if path.is_file() and path not in files and path not in [EVAL / name for name in NO_RULES]:
            files.add(path)
            left += _imports(path)
    return digest(sorted(files))


@functools.cache
def _imports(path: Path) -> list[Path]:
    """The files of this package that a file imports from, and some that don't exist."""
    package = f"mm1.{EVAL.name}"
    paths: list[Path] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(package):
            module = EVAL.joinpath(*node.module.removeprefix(package).split("."))
            paths += [module.with_suffix(".py"), *(module / f"{alias.name}.py" for alias in node.names)]
    return paths

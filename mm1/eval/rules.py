"""Which version of the rules that read and score answers gave a score."""

import functools
from pathlib import Path

from mm1.eval.model import digest

EVAL = Path(__file__).parent
SHARED = ("metrics/*.py", "data/readings.py", "data/styles.py", "fewshot.py", "judge.py")
"""The files that have a part in the scores of every task."""


@functools.cache
def rules_of(task: str) -> str:
    """A short hash of the code that reads and scores the answers of a task."""
    shared = [path for pattern in SHARED for path in sorted(EVAL.glob(pattern))]
    own = EVAL / "tasks" / f"{task}.py"
    return digest([*shared, own] if own.is_file() else shared)

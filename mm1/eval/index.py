"""The evaluation tasks by name."""

import importlib
import pkgutil
from collections.abc import Callable

from mm1.eval import tasks as task_folder
from mm1.eval.fewshot import Task


def find_task(name: str) -> Callable[..., Task]:
    """What makes the task of `tasks/NAME.py`.

    Raises:
        ValueError: an unknown task.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(task_folder.__path__))
    if name not in names:
        raise ValueError(f"no task {name!r}; known: {', '.join(names)}")
    return importlib.import_module(f"{task_folder.__name__}.{name}").task

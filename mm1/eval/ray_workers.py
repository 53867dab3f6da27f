"""An evaluation on a Ray cluster: each worker opens the model once and makes one file of answers after the other."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.progress import track

from mm1.cluster import Runner, connect_ray_workers
from mm1.eval.harness import AnswerJob

Jobs = Callable[[], Sequence[AnswerJob]]


class _Worker:
    """A process in the caller's working directory. It makes its own list of jobs: a job holds a model, which can't be
    sent to another process."""

    def __init__(self, jobs: Jobs, folder: str):
        os.chdir(folder)
        self.jobs = jobs()

    def answer(self, number: int) -> Path:
        return self.jobs[number]().resolve()


def answer_on_ray(jobs: Jobs, count: int, *, runner: Runner) -> None:
    """Do all `count` jobs on the workers of a Ray cluster. A worker that is lost is started again.

    On a cluster with GPUs each worker has one. `mm1` must be installed on every machine; model, data and results must
    be in folders that all machines see.

    Raises:
        ValueError: the cluster can't be reached, Ray is not installed, a job failed, or its file is not here.
    """
    ray, needs = connect_ray_workers(runner)
    from ray.exceptions import RayActorError, RayTaskError
    from ray.util import ActorPool

    worker = ray.remote(max_restarts=3, max_task_retries=3, **needs)(_Worker)
    pool = ActorPool([worker.remote(jobs, os.getcwd()) for _ in range(min(runner.workers, count))])
    finished = pool.map_unordered(lambda actor, number: actor.answer.remote(number), list(range(count)))
    try:
        files = list(track(finished, "answering on Ray", total=count, transient=True))
    except RayTaskError as error:
        raise ValueError(f"a worker could not answer: {error.cause}") from error
    except RayActorError as error:
        raise ValueError(f"a worker could not begin: {str(error).strip().splitlines()[-1]}") from error
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise ValueError(
            f"the workers wrote {missing[0]}, which is not on this machine; give --to a folder that all machines see"
        )

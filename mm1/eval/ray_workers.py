"""An evaluation on a Ray cluster: every worker opens the model once and answers one file after the other."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.progress import track

from mm1.cluster import Runner, connected

Part = Callable[[], Path]


class _Worker:
    """Where the caller stood; what there is to do is found out anew, as it cannot travel."""

    def __init__(self, parts: Callable[[], Sequence[Part]], folder: str):
        os.chdir(folder)
        self.parts = parts()

    def answer(self, number: int) -> Path:
        return self.parts[number]().resolve()


def spread(parts: Callable[[], Sequence[Part]], count: int, *, runner: Runner) -> None:
    """Have all `count` parts done; each says which file it made. A worker that is lost is begun anew.

    On a cluster with GPUs each worker has one. `mm1` must be installed on every machine, and model, data and
    results be in folders that all of them see.

    Raises:
        ValueError: nobody answers at the address, Ray is not installed, a part can't be done, or its file is not here.
    """
    cpus = os.cpu_count() or 1
    ray = connected(runner, cpus=max(cpus, runner.workers))
    from ray.exceptions import RayActorError, RayTaskError
    from ray.util import ActorPool

    # threads of a worker: Ray takes OMP_NUM_THREADS from its CPUs
    needs = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": max(1, cpus // runner.workers)}
    worker = ray.remote(max_restarts=3, max_task_retries=3, **needs)(_Worker)
    pool = ActorPool([worker.remote(parts, os.getcwd()) for _ in range(min(runner.workers, count))])
    made = pool.map_unordered(lambda actor, number: actor.answer.remote(number), list(range(count)))
    try:
        files = list(track(made, "answering on Ray", total=count, transient=True))
    except RayTaskError as error:
        raise ValueError(f"a worker could not answer: {error.cause}") from error
    except RayActorError as error:
        raise ValueError(f"a worker could not begin: {str(error).strip().splitlines()[-1]}") from error
    lost = [str(path) for path in files if not path.is_file()]
    if lost:
        raise ValueError(
            f"the workers wrote {lost[0]}, which is not on this machine; give --to a folder that all machines see"
        )

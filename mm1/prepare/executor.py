"""The executor: one Daft plan that processes the shards of a preparation, on this machine or on a Ray cluster.

A row of the plan is a shard, not a document: one broken file ends a Daft query over documents, and every picture would
travel between processes. A shard is read, filtered and written by one process.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from types import ModuleType

from mm1.cluster import Runner, connect_ray

_ONE_AT_A_TIME = Lock()
"""One shard at a time in a process: in this process Daft calls from one thread per core."""


class _ShardWorker:
    """What Daft calls with the number of a shard, in the process that processes it."""

    def __init__(self, process: Callable[[int], str]):
        self.process = process

    def __call__(self, number: int) -> str:
        with _ONE_AT_A_TIME:
            return self.process(number)


def run_shards(process: Callable[[int], str], numbers: Sequence[int], *, runner: Runner) -> Iterator[tuple[int, str]]:
    """Each number with what `process` returned for it, in the order in which they finish.

    On a cluster every machine needs `mm1`, and must see the folders of input and output.

    Raises:
        KeyboardInterrupt: stopped by the user.
        ValueError: no cluster answers at the address, or the extra is not installed.
    """
    if not numbers:
        return
    daft = _daft(runner)
    in_process = runner.kind == "native" and runner.workers == 1
    options = {"use_process": False} if in_process else {"max_concurrency": runner.workers}
    worker = daft.cls(_ShardWorker, **options)(process)
    frame = daft.from_pydict({"number": list(numbers)}).into_batches(1)
    unfinished = set(numbers)
    for row in frame.with_column("error", worker(frame["number"])).iter_rows():
        unfinished.discard(row["number"])
        yield row["number"], row["error"]
    if unfinished:  # Daft takes Ctrl-C for the end of the rows
        raise KeyboardInterrupt


def _daft(runner: Runner) -> ModuleType:
    """Daft with its runner set; it neither reports its use to its makers nor draws over our progress bar."""
    os.environ |= {"DAFT_ANALYTICS_ENABLED": "0", "DAFT_PROGRESS_BAR": "0"}
    os.environ["DAFT_RUNNER"] = runner.kind  # a process has one runner: it cannot be set a second time
    try:
        import daft
    except ModuleNotFoundError:
        raise ValueError("this needs daft, which is not installed: pip install 'mm1[prepare]'") from None
    if runner.kind == "ray":
        connect_ray(runner, cpus=runner.workers)
        daft.set_runner_ray(noop_if_initialized=True)
    return daft

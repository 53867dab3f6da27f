"""The engine: one Daft plan that does the parts of a preparation, on this machine or on a Ray cluster.

A row of the plan is a part, not a document. One broken file of many ends a Daft query over documents, and there every
picture travels from process to process; a part is read, screened and written where it is.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from types import ModuleType

from mm1.cluster import Runner, connected

_TURN = Lock()
"""One part at a time in a process: Daft calls from a thread for each core, where it calls in this process."""


class _Work:
    """What Daft calls with a part's number, in the process that does the part."""

    def __init__(self, do: Callable[[int], str]):
        self.do = do

    def __call__(self, number: int) -> str:
        with _TURN:
            return self.do(number)


def each(do: Callable[[int], str], numbers: Sequence[int], *, runner: Runner) -> Iterator[tuple[int, str]]:
    """Each number with what `do` said of it, as they are done.

    On a cluster, `mm1` must be installed on every machine, and input and output be folders that all of them see.

    Raises:
        KeyboardInterrupt: stopped by the user.
        ValueError: nobody answers at the address, or the extra is not installed.
    """
    if not numbers:
        return
    daft = _daft(runner)
    alone = runner.kind == "native" and runner.workers == 1
    work = (daft.cls(_Work, use_process=False) if alone else daft.cls(_Work, max_concurrency=runner.workers))(do)
    frame = daft.from_pydict({"number": list(numbers)}).into_batches(1)
    left = set(numbers)
    for row in frame.with_column("said", work(frame["number"])).iter_rows():
        left.discard(row["number"])
        yield row["number"], row["said"]
    if left:  # Daft takes Ctrl-C for the end of the rows
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
        connected(runner, cpus=runner.workers)
        daft.set_runner_ray(noop_if_initialized=True)
    return daft

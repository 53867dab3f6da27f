"""The runs of an ablation, trained and scored: one after the other here, in several processes, or on Ray.

A run that fails stops no other, except those that start from it. Nothing is kept about what is done but the run folders
themselves, so that the same call continues a stopped one.
"""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch

from mm1.ablate.measures import measure, write_results
from mm1.ablate.plan import Plan, load_plan
from mm1.cluster import Runner, connect_ray_workers
from mm1.report.page import report
from mm1.train.coordinator import Stopped
from mm1.train.log import console
from mm1.train.run import train_run

LOG = "ablation.log"
"""What a run in a process of its own printed, in its folder."""


class RunFailed(RuntimeError):
    """A run that ended with an error; the message is the last line that it printed."""


class _Workers(Protocol):
    """What does `count` runs at a time."""

    count: int

    def start(self, name: str) -> None:
        """Do the run of this name in the ablation's folder, and return when it is done.

        Raises:
            RunFailed: the run ended with an error.
        """

    def stop(self) -> None:
        """End the runs that still go on."""


def run_all(plan: Plan, folder: Path, *, runner: Runner) -> dict[str, str]:
    """Do all runs of the plan in `folder`; the message of each that failed, by its name.

    Raises:
        ValueError: the Ray cluster can't be reached.
        Stopped, KeyboardInterrupt: the user stopped it; what was done is saved.
    """
    with _sole_user(folder) as lock:
        if runner.kind == "ray":
            return _side_by_side(plan, folder, workers=_Ray(folder, runner))
        if runner.workers == 1:
            return _one_by_one(plan, folder)
        return _side_by_side(plan, folder, workers=_Processes(folder, runner.workers, lock))


@contextmanager
def _sole_user(folder: Path) -> Iterator[int]:
    """Wait until no process of another call, or of one that was killed, works in `folder`; the file they inherit."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"waiting for the runs of another call in {folder} to end", highlight=False)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def do_run(folder: Path, name: str) -> None:
    """Train, score and report one run of the ablation in `folder`, or what is left of that."""
    plan = load_plan(folder)
    one = plan.runs[name]
    train_run(one.run, folder / name)
    if one.scored:
        measure(one, folder / name, plan.evaluation)
    if not (folder / name / "report.html").is_file():
        report(folder / name)


def _one_by_one(plan: Plan, folder: Path) -> dict[str, str]:
    failed: dict[str, str] = {}
    for name, one in plan.runs.items():
        if reason := _reason_not_to_start(one.needs, failed):
            failed[name] = reason
        else:
            began = time.monotonic()
            error = None
            try:
                do_run(folder, name)
            except Exception as problem:  # whatever it is, the other arms can still be compared
                if isinstance(problem, Stopped):
                    raise
                (folder / name).mkdir(parents=True, exist_ok=True)
                (folder / name / LOG).write_text(traceback.format_exc())
                error = failed[name] = f"{type(problem).__name__}: {problem}"
            _report(plan, folder, name, error=error, seconds=time.monotonic() - began)
    return failed


def _side_by_side(plan: Plan, folder: Path, *, workers: "_Workers") -> dict[str, str]:
    """Do all runs, as many at a time as there are workers, each after those it needs."""
    failed: dict[str, str] = {}
    waiting, done, running = dict(plan.runs), set[str](), dict[Future, tuple[str, float]]()
    with ThreadPoolExecutor(workers.count) as pool:
        try:
            while waiting or running:
                for name, one in list(waiting.items()):
                    if reason := _reason_not_to_start(one.needs, failed):
                        failed[name] = reason
                        del waiting[name]
                    elif len(running) < workers.count and done.issuperset(one.needs):
                        del waiting[name]
                        running[pool.submit(workers.start, name)] = name, time.monotonic()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    name, began = running.pop(future)
                    if error := future.exception():
                        failed[name] = str(error)
                    else:
                        done.add(name)
                    _report(plan, folder, name, error=failed.get(name), seconds=time.monotonic() - began)
        except BaseException:
            workers.stop()  # else the pool would wait for them
            raise
    return failed


def _reason_not_to_start(needs: tuple[str, ...], failed: dict[str, str]) -> str | None:
    missing = [need for need in needs if need in failed]
    return f"not started: {missing[0]} failed" if missing else None


def _report(plan: Plan, folder: Path, name: str, *, error: str | None, seconds: float) -> None:
    """Say what became of a run, and bring `results.csv` up to date."""
    number = list(plan.runs).index(name) + 1
    what = f"failed: {error}" if error else f"done in {seconds / 60:.1f} minutes"
    console.print(f"run {number} of {len(plan.runs)}  {name}  {what}", highlight=False, soft_wrap=True)
    if not error and plan.runs[name].scored:
        write_results(plan, folder)


class _Processes:
    """Runs in processes of their own, each with its share of the cores and a GPU if there are any.

    More workers than GPUs share them evenly; the small models of an ablation leave most of one unused.
    """

    def __init__(self, folder: Path, workers: int, inherited: int):
        """`inherited` is a file that the processes keep open as long as they live."""
        self.folder, self.count, self._inherited = folder, workers, inherited
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen] = set()
        self._runs_of_gpu = dict.fromkeys(range(torch.cuda.device_count()), 0)
        self._threads = str(max(1, (os.cpu_count() or 1) // workers))
        self._is_stopped = False

    def start(self, name: str) -> None:
        """Do the run in a new process.

        Raises:
            RunFailed: the process failed.
        """
        with self._lock:
            if self._is_stopped:
                raise RunFailed("stopped")
            gpu = min(self._runs_of_gpu, key=lambda number: self._runs_of_gpu[number], default=None)
            process = self._open(name, gpu)
            self._running.add(process)
            if gpu is not None:
                self._runs_of_gpu[gpu] += 1
        status = process.wait()
        with self._lock:
            self._running.discard(process)
            if gpu is not None:
                self._runs_of_gpu[gpu] -= 1
        if status:
            lines = (self.folder / name / LOG).read_text(errors="replace").strip().splitlines()
            raise RunFailed(lines[-1] if lines else f"exit status {status}")

    def _open(self, name: str, gpu: int | None) -> subprocess.Popen:
        environment = {**os.environ, "OMP_NUM_THREADS": self._threads}
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        code = "import sys; from mm1.ablate.runner import child; child(*sys.argv[1:])"
        command = [sys.executable, "-c", code, str(self.folder), name, str(os.getpid())]
        with (self.folder / name / LOG).open("w") as log:
            return subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, pass_fds=[self._inherited]
            )

    def stop(self) -> None:
        """End the runs that still go on; each saves what it did."""
        with self._lock:
            self._is_stopped = True
            for process in self._running:
                process.terminate()


def child(folder: str, name: str, parent: str) -> None:
    """What a process of `_Processes` does. It ends when its parent does, even if that is killed."""

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    do_run(Path(folder), name)


class _Ray:
    """Runs on the GPUs of a Ray cluster, or on its cores if it has no GPU.

    `mm1` must be installed on every machine; the ablation's folder and the data must be seen by all.
    """

    def __init__(self, folder: Path, runner: Runner):
        self.folder, self.count = folder, runner.workers
        self._ray, needs = connect_ray_workers(runner)
        # a machine that is lost is no fault of the run, which continues on another one from its last checkpoint
        self._remote = self._ray.remote(max_retries=3, max_calls=1, **needs)(_do_remote)

    def start(self, name: str) -> None:
        errors = self._ray.exceptions
        try:
            self._ray.get(self._remote.remote(os.getcwd(), str(self.folder), name))
        except errors.RayTaskError as error:
            raise RunFailed(f"{type(error.cause).__name__}: {error.cause}") from error
        except errors.RayError as error:
            raise RunFailed(str(error).strip().splitlines()[-1]) from error
        if not (self.folder / name / "config.json").is_file():
            raise RunFailed("its folder is not on this machine; give --to a folder that all machines see")

    def stop(self) -> None:
        self._ray.shutdown()


def _do_remote(working: str, folder: str, name: str) -> None:
    os.chdir(working)
    do_run(Path(folder), name)

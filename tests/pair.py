"""Ranks for tests that start within a second: forked from a process that has loaded torch."""

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

STARTS = get_context("forkserver")
# late imports take half of the start of a run: torch's compiler for deterministic kernels, pandas for Lance
STARTS.set_forkserver_preload(["mm1.train.run", "torch._inductor", "torch.distributed.tensor", "pandas"])


class Pair:
    """Ranks that call `work(rank, *arguments)`, started as by torchrun."""

    def __init__(self, work: Callable[..., None], *arguments: Any, ranks: int = 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.errors = STARTS.SimpleQueue()
        self.processes = [
            STARTS.Process(target=_as_rank, args=(rank, ranks, port, self.errors, work, arguments))
            for rank in range(ranks)
        ]
        for process in self.processes:
            process.start()

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to a rank that runs; the number of one that has ended may be another process's by now."""
        process = self.processes[rank]
        if process.is_alive() and process.pid:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def end(self, seconds: float = 300) -> list[int | None]:
        """The exit codes of all; ranks that still run after so many seconds are killed."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.1, deadline - time.monotonic()))
        for rank in range(len(self.processes)):
            self.kill(rank)
        for process in self.processes:
            process.join()
        return [process.exitcode for process in self.processes]

    def messages(self) -> list[str]:
        """The errors with which ranks ended."""
        messages = []
        while not self.errors.empty():
            messages.append(self.errors.get())
        return messages


def train_all(rank: int, jobs: list[tuple[Path, Path]]) -> None:
    """Train the runs recorded in JSON files, one after the other, each in its folder."""
    from mm1 import dist
    from mm1.config import run as config
    from mm1.train.run import train_run

    with dist.connected():
        for recorded, folder in jobs:
            train_run(config.load(recorded), folder)


def _as_rank(rank: int, ranks: int, port: int, errors: Any, work: Callable[..., None], arguments: tuple) -> None:
    from mm1.train.coordinator import Stopped

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        work(rank, *arguments)
    except Stopped:
        os._exit(143)
    except BaseException as error:
        errors.put(f"rank {rank}: {type(error).__name__}: {error}")
        os._exit(2)

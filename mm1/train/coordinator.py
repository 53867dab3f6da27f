"""What ranks tell each other at every step, and the report when one of them hangs."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from types import FrameType
from typing import Any

import torch
import torch.distributed as torch_dist

from mm1 import dist
from mm1.config import run as config
from mm1.config.base import ConfigError
from mm1.config.run import RunConfig
from mm1.dist import RankError
from mm1.document import Batch

PATIENCE = 120.0
"""Seconds without progress after which a rank prints a report; the next comes after twice as many, and so on."""

HEARTBEAT = 5.0
"""Seconds between two signs of life of a rank."""


class Stopped(Exception):
    """A rank received SIGTERM, and all ranks have agreed to stop after `step` steps."""

    def __init__(self, step: int):
        super().__init__(f"asked to stop (SIGTERM) after step {step}")
        self.step = step


def check_same_start(run: RunConfig, step: int | None) -> None:
    """Wait for all ranks, and check that they are about to train the same run from the same step.

    Raises:
        ConfigError: a rank has another config, or found another checkpoint.
    """
    starts = dist.all_gather_object((run.model_dump(mode="json"), step))
    first_run, first_step = starts[0]
    for rank, (other_run, other_step) in enumerate(starts):
        changed = config.differences(config.parse(first_run), config.parse(other_run))
        for name, (first, other) in changed.items():
            raise ConfigError(f"rank {rank} has {name} = {other!r}, rank 0 has {first!r}; start all with the same")
        if other_step != first_step:
            first, other = ("no checkpoint" if step is None else f"step {step}" for step in (first_step, other_step))
            raise ConfigError(
                f"rank 0 found {first}, rank {rank} found {other}; all must see the same folder: put the run on "
                f"a file system they share, or its checkpoints in an object store (checkpoints.folder)"
            )


class Coordinator:
    """Keeps this rank in step with the others. Ranks with the same `data_rank` have the same sequences."""

    def __init__(self, *, data_rank: int = 0):
        self._data_rank, self._stopping = data_rank, False
        self._progress = ("starting", 0)
        self._since = time.monotonic()

    def enter(self, phase: str, step: int) -> None:
        """Note what this rank is doing, for the report if others wait for it. Steps are counted from 1."""
        self._progress, self._since = (phase, step), time.monotonic()

    def total_weight(self, step: int, batches: list[Batch], *, weight: float) -> float:
        """The weight of a step (from 0) over all data ranks, once all ranks have begun it.

        Raises:
            RankError: a rank is at another step or has another number of micro-batches; or ranks of one data rank
                have other sequences.
            Stopped: a rank received SIGTERM.
        """
        self.enter("agreeing", step + 1)
        # float64 holds every count exactly
        own = torch.tensor([step, len(batches), self._data_rank, weight, self._stopping], dtype=torch.float64)
        every = own[None]
        if dist.world() > 1:
            every = own.new_empty(dist.world(), len(own))
            torch_dist.all_gather([*every.unbind()], own)
        self.enter("forward and backward", step + 1)
        if bool(every[:, 4].any()):
            raise Stopped(step)
        first, *_ = states = every.tolist()
        weights: dict[float, float] = {}
        for rank, (other_step, micro_batches, data_rank, other_weight, _) in enumerate(states):
            if (other_step, micro_batches) != tuple(first[:2]):
                raise RankError(
                    f"rank {rank} is about to do step {other_step + 1:.0f} in {micro_batches:.0f} micro-batches, "
                    f"rank 0 step {first[0] + 1:.0f} in {first[1]:.0f}; start all again"
                )
            if weights.setdefault(data_rank, other_weight) != other_weight:
                raise RankError(f"step {step + 1}: rank {rank} has other sequences than the ranks of its data rank")
        return sum(weights.values())

    def gather(self, value: Any) -> list[Any]:
        """The values of all data ranks, in order; tensors are on the CPU."""
        by_data_rank = dict(reversed(dist.all_gather_object((self._data_rank, _on_cpu(value)))))
        return [by_data_rank[data_rank] for data_rank in sorted(by_data_rank)]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Stop the run after the current step on SIGTERM, and let a thread report when nothing moves."""
        before = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._stop)
        ended = threading.Event()
        watch = threading.Thread(target=self._watch, args=(ended,), name="watchdog", daemon=True)
        watch.start()
        try:
            yield
        finally:
            ended.set()
            watch.join()
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)

    def until_stopped(self, stream: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """The steps of `stream`; an empty one at the end if SIGTERM has ended the loader's workers too."""
        try:
            yield from stream
        except RuntimeError:
            if not self._stopping:
                raise
            yield []

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _watch(self, ended: threading.Event) -> None:
        """Tell the others every few seconds what this rank is doing; print what all are doing if it hangs."""
        store: Any = None
        if dist.world() > 1:  # a connection of its own: the main thread's may be waiting
            store = torch_dist.distributed_c10d._get_default_store()
            store = torch_dist.PrefixStore("watchdog", store.clone())
        wait, patience, progress = min(HEARTBEAT, PATIENCE / 4), PATIENCE, self._progress
        while not ended.wait(wait):
            if store is not None:
                phase, step = self._progress
                store.set(str(dist.rank()), f"{time.monotonic() - self._since:.0f} {step} {phase}")
            if self._progress != progress:
                progress, patience = self._progress, PATIENCE
            if time.monotonic() - self._since > patience:
                patience *= 2
                print(self._report(store), flush=True)

    def _report(self, store: Any) -> str:
        """What each rank is doing, one on a line."""
        phase, step = self._progress
        if store is None:
            return f"no step for {time.monotonic() - self._since:.0f} s: {phase}, step {step}"
        lines = [f"rank {dist.rank()} waits: no step for {time.monotonic() - self._since:.0f} s"]
        for rank in range(dist.world()):
            state = store.get(str(rank)).decode() if store.check([str(rank)]) else "? ? never heard of"
            seconds, other_step, other_phase = state.split(" ", 2)
            lines.append(f"  rank {rank}: step {other_step}, {other_phase}, for {seconds} s")
        return "\n".join(lines)


def _on_cpu(value: Any) -> Any:
    """`value` with every tensor in it on the CPU, so that it can be sent."""
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {name: _on_cpu(inside) for name, inside in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_cpu(inside) for inside in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _on_cpu(getattr(value, f.name)) for f in fields(value)})
    return value

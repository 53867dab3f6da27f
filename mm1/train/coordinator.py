"""What the ranks of a run tell each other at each step, and what is said when one of them does not come."""

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
"""Seconds in one place after which a rank is reported; again after twice as many, and so on."""

TOLD_EVERY = 5.0
"""Seconds between two signs of life of a rank."""


class Stopped(Exception):
    """A rank was asked to end (SIGTERM), and all have agreed to, after `step` steps."""

    def __init__(self, step: int):
        super().__init__(f"asked to stop (SIGTERM) after step {step}")
        self.step = step


def meet(run: RunConfig, step: int | None) -> None:
    """Return once all ranks are there, if they are about to train the same run from the same step.

    Raises:
        ConfigError: a rank has another config, or found another checkpoint.
    """
    answers = dist.all_gather_object((run.model_dump(mode="json"), step))
    for number, (theirs, found) in enumerate(answers):
        changed = config.differences(config.parse(answers[0][0]), config.parse(theirs))
        for name, (first, other) in changed.items():
            raise ConfigError(f"rank {number} has {name} = {other!r}, rank 0 has {first!r}; start all alike")
        if found != answers[0][1]:
            said = ["no checkpoint" if at is None else f"step {at}" for at in (answers[0][1], found)]
            raise ConfigError(
                f"rank 0 found {said[0]}, rank {number} found {said[1]}; all must see the same folder: put the run on "
                f"a file system they share, or its checkpoints in an object store (checkpoints.folder)"
            )


class Ranks:
    """This rank's word at each step. `data_rank` says whose rows it has."""

    def __init__(self, *, data_rank: int = 0):
        self._data_rank, self._stopping = data_rank, False
        self._place = ("starting", 0)
        self._since = time.monotonic()

    def at(self, step: int, phase: str) -> None:
        """Note where this rank stands, for the others if they wait for it. Steps are counted from 1."""
        self._place, self._since = (phase, step), time.monotonic()

    def weight(self, step: int, batches: list[Batch], weight: int) -> int:
        """The weight of the step over all ranks, if they are about to do the same.

        Raises:
            RankError: a rank is at another step or has another number of micro-batches; or ranks that share rows
                don't have the same.
            Stopped: a rank was told to end.
        """
        self.at(step + 1, "agreeing")
        said = torch.tensor([step, len(batches), self._data_rank, weight, self._stopping])
        all_said = said[None]
        if dist.world() > 1:
            all_said = said.new_empty(dist.world(), len(said))
            torch_dist.all_gather([*all_said.unbind()], said)
        self.at(step + 1, "forward and backward")
        if bool(all_said[:, 4].any()):
            raise Stopped(step)
        first, *_ = rows = all_said.tolist()
        weights: dict[int, int] = {}
        for number, (theirs, micro_batches, data_rank, part, _) in enumerate(rows):
            if (theirs, micro_batches) != tuple(first[:2]):
                raise RankError(
                    f"rank {number} is about to do step {theirs + 1} in {micro_batches} micro-batches, "
                    f"rank 0 step {first[0] + 1} in {first[1]}; start all again"
                )
            if weights.setdefault(data_rank, part) != part:
                raise RankError(f"step {step + 1}: rank {number} has other rows than the ranks it shares weights with")
        return sum(weights.values())

    def together(self, mine: Any) -> list[Any]:
        """What every rank with rows of its own says, in the order of these; tensors come on the CPU."""
        found = dict(reversed(dist.all_gather_object((self._data_rank, _plain(mine)))))
        return [found[number] for number in sorted(found)]

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM ends the run after the step that is being done, and a thread says when nothing moves."""
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

    def until_stopped(self, steps: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """The same steps; where a loader's worker was told to end too, and did, an empty one."""
        try:
            yield from steps
        except RuntimeError:
            if not self._stopping:
                raise
            yield []

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _watch(self, ended: threading.Event) -> None:
        """Tell the others every few seconds where this rank stands; say where all stand if this one does not move."""
        store: Any = None
        if dist.world() > 1:  # a connection of its own: the main thread's may be waiting
            store = torch_dist.distributed_c10d._get_default_store()
            store = torch_dist.PrefixStore("watchdog", store.clone())
        wait, patience, place = min(TOLD_EVERY, PATIENCE / 4), PATIENCE, self._place
        while not ended.wait(wait):
            if store is not None:
                phase, step = self._place
                store.set(str(dist.rank()), f"{time.monotonic() - self._since:.0f} {step} {phase}")
            if self._place != place:
                place, patience = self._place, PATIENCE
            if time.monotonic() - self._since > patience:
                patience *= 2
                print(self._report(store), flush=True)

    def _report(self, store: Any) -> str:
        """Where each rank stands, one a line."""
        phase, step = self._place
        if store is None:
            return f"no step for {time.monotonic() - self._since:.0f} s: {phase}, step {step}"
        said = [store.get(str(number)).decode() if store.check([str(number)]) else "" for number in range(dist.world())]
        lines = []
        for number, words in enumerate(said):
            seconds, step_, phase_ = words.split(" ", 2) if words else ("?", "?", "never heard of")
            lines.append(f"  rank {number}: step {step_}, {phase_}, for {seconds} s")
        return f"rank {dist.rank()} waits: nothing moved for {time.monotonic() - self._since:.0f} s\n" + "\n".join(
            lines
        )


def _plain(value: Any) -> Any:
    """`value` with every tensor in it on the CPU, so that it can be sent."""
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {name: _plain(inside) for name, inside in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(inside) for inside in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _plain(getattr(value, f.name)) for f in fields(value)})
    return value

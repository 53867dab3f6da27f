"""Where this process runs: rank, world, device; what ranks tell each other; what the process itself is tuned to."""

import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as torch_dist

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc, malloc.h

Found = TypeVar("Found")
Group = torch_dist.ProcessGroup


class RankError(RuntimeError):
    """What another rank could not do, or would do otherwise than the rest: says which and what."""


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def device() -> torch.device:
    """The accelerator of this rank, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


@contextmanager
def connected(*, patience: timedelta | None = None) -> Iterator[None]:
    """The ranks that torchrun started, able to talk; a single process, or one that is connected, as it is.

    Who waits for the others gives up after `patience`; torch's own is half an hour, with NCCL ten minutes.
    """
    if world() == 1 or torch_dist.is_initialized():
        yield
        return
    if device().type == "cuda":
        torch.cuda.set_device(device())
    # gloo for what ranks tell each other, also where gradients go by nccl: no word then waits for the device
    torch_dist.init_process_group("cpu:gloo,cuda:nccl" if device().type == "cuda" else "gloo", timeout=patience)
    try:
        yield
    finally:
        torch_dist.destroy_process_group()


def apart() -> Group | None:
    """A way for a background thread to talk to the same thread of the other ranks; None with one rank."""
    return torch_dist.new_group(backend="gloo") if world() > 1 else None


def all_gather_object(value: Found, group: Group | None = None) -> list[Found]:
    """What every rank says, in order of ranks."""
    if world() == 1:
        return [value]
    found: list[Found] = [value] * world()
    torch_dist.all_gather_object(found, value, group=group)
    return found


def everywhere(act: Callable[[], Found], group: Group | None = None) -> list[Found]:
    """What `act` gives on each rank.

    Raises:
        RankError: it failed on another rank, so that none waits for one that is gone.
    """
    found, failure = None, None
    try:
        found = act()
    except Exception as error:
        failure = error
    answers = all_gather_object((found, failure and f"{type(failure).__name__}: {failure}"), group)
    if failure is not None:
        raise failure
    for number, (_, problem) in enumerate(answers):
        if problem:
            raise RankError(f"rank {number}: {problem}")
    return [answer for answer, _ in answers]  # type: ignore[misc]


def on_rank_zero(act: Callable[[], Found], group: Group | None = None) -> Found:
    """What `act` gives on rank 0, where alone it is done.

    Raises:
        RankError: it failed there.
    """
    return everywhere(lambda: act() if rank() == 0 else None, group)[0]  # type: ignore[return-value]


def total(value: torch.Tensor) -> torch.Tensor:
    """The sum of `value` over all ranks."""
    if world() > 1:
        torch_dist.all_reduce(value)
    return value


def prepare_process() -> None:
    """Settings of the whole process that make steps on this machine repeatable and fast.

    Deterministic kernels: a resumed run repeats a step bit for bit. On Linux glibc hands large blocks
    back to the kernel at every free; keeping them made the same training step 1.2 times as fast. A threshold
    keeps blocks of up to 32 MB only, so none is mapped apart.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    # filling new memory with NaN is a debugging aid that costs 5 % of a step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)

"""The process: its rank and device, communication with the other ranks, and settings for the whole of it."""

import ctypes
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeVar

import torch
import torch.distributed as torch_dist

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc, malloc.h

T = TypeVar("T")
Group = torch_dist.ProcessGroup
Precision = Literal["auto", "fp32", "bf16"]


class RankError(RuntimeError):
    """Another rank failed, or is about to do something else than the rest: says which and what."""


def rank() -> int:
    """The number of this process among those that torchrun started."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many processes torchrun started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def ranks_here() -> int:
    """How many of them run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device() -> torch.device:
    """The accelerator of this rank, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The type to compute in. `auto` is bf16 on a GPU; fp32 on a CPU, where bf16 runs at half the speed."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


@contextmanager
def connected(*, patience: timedelta | None = None, alone: bool = False) -> Iterator[None]:
    """Connect the ranks that torchrun started; do nothing if they are connected.

    A single process needs no connection; `alone` makes a group of it, which FSDP needs. A rank that waits for others
    gives up after `patience`; torch's default is half an hour, with NCCL ten minutes.
    """
    if torch_dist.is_initialized() or (world() == 1 and not alone):
        yield
        return
    if device().type == "cuda":
        torch.cuda.set_device(device())
    # messages go by gloo even if gradients go by NCCL, so that they don't wait for the device
    backend = "cpu:gloo,cuda:nccl" if device().type == "cuda" else "gloo"
    if world() == 1:  # no address to meet others at
        torch_dist.init_process_group(backend, timeout=patience, store=torch_dist.HashStore(), rank=0, world_size=1)
    else:
        torch_dist.init_process_group(backend, timeout=patience)
    try:
        yield
    finally:
        torch_dist.destroy_process_group()


def background_group() -> Group | None:
    """A group in which a background thread talks to that of the other ranks; None for a single process."""
    return torch_dist.new_group(backend="gloo") if world() > 1 else None


def all_gather_object(value: T, group: Group | None = None) -> list[T]:
    """The values of all ranks, in order."""
    if world() == 1:
        return [value]
    values: list[T] = [value] * world()
    torch_dist.all_gather_object(values, value, group=group)
    return values


def on_every_rank(act: Callable[[], T], group: Group | None = None) -> list[T]:
    """The results of calling `act` on each rank, in order.

    Raises:
        RankError: it failed on another rank, so that no rank waits for one that is gone.
    """
    result, failure = None, None
    try:
        result = act()
    except Exception as error:
        failure = error
    results = all_gather_object((result, failure and f"{type(failure).__name__}: {failure}"), group)
    if failure is not None:
        raise failure
    for number, (_, problem) in enumerate(results):
        if problem:
            raise RankError(f"rank {number}: {problem}")
    return [each for each, _ in results]  # type: ignore[misc]


def on_rank_zero(act: Callable[[], T], group: Group | None = None) -> T:
    """The result of calling `act` on rank 0 only, on every rank.

    Raises:
        RankError: it failed there.
    """
    return on_every_rank(lambda: act() if rank() == 0 else None, group)[0]  # type: ignore[return-value]


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The sum of `value` over all ranks; changes `value`."""
    if world() > 1:
        torch_dist.all_reduce(value)
    return value


@dataclass(frozen=True, slots=True)
class DataRanks:
    """The ranks that have sequences of their own, as one of them sees it.

    rank    which of them this process is
    count   how many there are
    copies  neighbouring processes with the same sequences, a tensor-parallel group
    """

    rank: int = 0
    count: int = 1
    copies: int = 1

    def gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """`x` of each of them, in order; numbers of rows may differ. Nothing is differentiated."""
        if self.count == 1:
            return [x]
        sizes = self.sizes(len(x))
        padded = x.new_zeros(max(1, *sizes), *x.shape[1:])
        padded[: len(x)] = x
        every = x.new_empty(world() * len(padded), *x.shape[1:])
        torch_dist.all_gather_into_tensor(every, padded)
        parts = every.unflatten(0, (world(), -1))[:: self.copies]
        return [part[:size] for part, size in zip(parts, sizes, strict=True)]

    def sizes(self, rows: int) -> list[int]:
        """The `rows` of each of them, in order."""
        if self.count == 1:
            return [rows]
        every = torch.empty(world(), dtype=torch.int64)
        torch_dist.all_gather_into_tensor(every, torch.tensor([rows]))
        return every[:: self.copies].tolist()

    def shift(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The `tensors` of the rank before this one, of the same shapes, while ours go to the rank after it."""
        if self.count == 1:
            return list(tensors)
        after, before = ((rank() + step) % world() for step in (self.copies, -self.copies))
        received = [torch.empty_like(x) for x in tensors]
        sends = [torch_dist.P2POp(torch_dist.isend, x.contiguous(), after) for x in tensors]
        receives = [torch_dist.P2POp(torch_dist.irecv, x, before) for x in received]
        for work in torch_dist.batch_isend_irecv([*sends, *receives]):
            work.wait()
        return received


@contextmanager
def repeatable() -> Iterator[None]:
    """Inside, a step repeats bit for bit on the same kind of device, also in another process.

    On a GPU an operation without a deterministic kernel is an error. With warnings instead, torch would take the faster
    backward passes of attention, which add up in any order (ATen/native/transformers/cuda/attention_backward.cu), and
    cuDNN's attention (sdp_utils.cpp beside it). Compiled kernels are chosen without timing them. cuBLAS needs a fixed
    workspace, which it reads when CUDA starts.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=device().type != "cuda")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def machine_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def prepare_process() -> None:
    """Make steps of this process repeatable where that costs nothing, and fast.

    glibc returns large blocks to the kernel whenever they are freed; keeping them made a training step 1.2 times as
    fast. Its threshold can keep blocks of up to 32 MB only, so no block is mapped on its own.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    # filling new memory with NaN is a debugging aid that costs 5 % of a step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)

"""Connecting to a Ray cluster: a new one on this machine, or one that is running."""

import logging
import os
import socket
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Runner:
    """Where work is done, and by how many workers. Without an address, Ray starts on this machine."""

    kind: Literal["native", "ray"] = "native"
    address: str = ""
    workers: int = 1


def connect_ray(runner: Runner, *, cpus: int) -> ModuleType:
    """The `ray` module, connected to the cluster at the runner's address, or to a new one with `cpus` on this machine.

    Raises:
        ValueError: the address can't be reached, or Ray is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # or it reports its use
    try:
        import ray
    except ModuleNotFoundError:
        raise ValueError("this needs ray, which is not installed: pip install 'mm1[ray]'") from None
    if runner.address:
        _check(runner.address)
    if not ray.is_initialized():
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        options |= {"address": runner.address} if runner.address else {"num_cpus": cpus, "include_dashboard": False}
        with warnings.catch_warnings():  # Ray's forks replace their program at once
            warnings.filterwarnings("ignore", "lance is not fork-safe")
            ray.init(**options)
    return ray


def connect_ray_workers(runner: Runner) -> tuple[ModuleType, dict[str, int]]:
    """The `ray` module, connected, and what each of the runner's workers needs: a GPU, or cores if there is none.

    A worker's cores are its share of this machine's; Ray sets its OMP_NUM_THREADS to them.

    Raises:
        ValueError: the address can't be reached, or Ray is not installed.
    """
    cpus = os.cpu_count() or 1
    ray = connect_ray(runner, cpus=max(cpus, runner.workers))
    has_gpus = ray.cluster_resources().get("GPU")
    return ray, {"num_gpus": 1} if has_gpus else {"num_cpus": max(1, cpus // runner.workers)}


def _check(address: str) -> None:
    """Fail fast: Ray would retry an unreachable address for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local"):
        return
    if not host or not port.isdecimal():
        raise ValueError(f"{address!r} is no address of a Ray cluster; expected HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ValueError(f"nobody answers at {address}: {error}; `ray status` on the head says its address") from None

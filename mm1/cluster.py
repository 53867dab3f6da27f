"""A Ray cluster: the one of this machine, or one that runs already."""

import logging
import os
import socket
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Runner:
    """Where parts are done, and how many at once. Without an address Ray is started on this machine."""

    kind: Literal["native", "ray"] = "native"
    address: str = ""
    workers: int = 1


def connected(runner: Runner, *, cpus: int) -> ModuleType:
    """Ray, connected to the cluster at the runner's address, else to one of `cpus` that is started here.

    Raises:
        ValueError: nobody answers at the address, or Ray is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it reports its use to its makers otherwise
    try:
        import ray
    except ModuleNotFoundError:
        raise ValueError("this needs ray, which is not installed: pip install 'mm1[ray]'") from None
    if runner.address:
        _check(runner.address)
    if not ray.is_initialized():
        how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        here = {"num_cpus": cpus, "include_dashboard": False}
        with warnings.catch_warnings():  # of a fork that becomes another program at once
            warnings.filterwarnings("ignore", "lance is not fork-safe")
            ray.init(**how, **({"address": runner.address} if runner.address else here))
    return ray


def _check(address: str) -> None:
    """Nothing; Ray itself would ask an address for minutes at which nobody answers."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local"):
        return
    if not host or not port.isdecimal():
        raise ValueError(f"{address!r} is no address of a Ray cluster; expected HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ValueError(f"nobody answers at {address}: {error}; `ray status` on the head says its address") from None

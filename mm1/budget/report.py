"""What `mm1 budget` answers: the layout asked for or the fastest that fits, as a table and as JSON."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.table import Column, Table

from mm1.budget.hardware import GPUS, Shapes, measured
from mm1.budget.planner import Budget, Planner, Setup, fastest, setups
from mm1.config.base import ConfigError, nearest
from mm1.config.run import ParallelConfig, RunConfig

MOST = 4096
"""GPUs beyond which no layout is looked for."""


def planner(run: RunConfig, *, gpu: str, gpus: int) -> Planner:
    """A planner on `gpus` of a kind: a key of `GPUS`, or `cpu` for this machine, which is measured now.

    Raises:
        ConfigError: there is no such kind.
    """
    if gpu != "cpu" and gpu not in GPUS:
        raise ConfigError(f"no rates of {gpu!r}; {nearest(gpu, [*GPUS, 'cpu'])}")
    on_cpu = gpu == "cpu"
    precision = torch.float32 if run.precision == "fp32" or (on_cpu and run.precision == "auto") else torch.bfloat16
    return Planner(run, measured(shapes(run), ranks=gpus) if on_cpu else GPUS[gpu], precision=precision)


def shapes(run: RunConfig) -> Shapes:
    """What a processor is measured at."""
    decoder, row = run.model.decoder, run.data.sequence_length
    return Shapes(run.micro_batch_size * row, decoder.width, decoder.mlp_width, decoder.head_width, row)


def offer(planner: Planner, ranks: int) -> Budget:
    """The budget of the layout in `run.parallel`; where that says nothing of the fastest one that fits.

    Raises:
        ConfigError: the layout is of another number of ranks, or cannot be, or none fits.
    """
    run = planner.run
    if run.parallel == ParallelConfig():
        found = fastest(planner, ranks)
        if found is None:
            raise ConfigError(_too_few(planner, ranks))
        return found
    return planner.budget(asked(run, ranks, node=planner.rates.node))


def asked(run: RunConfig, ranks: int, *, node: int) -> Setup:
    """The layout in `run.parallel` on so many ranks.

    Raises:
        ConfigError: it has another number of ranks, or the model or its rows can't be cut like that.
    """
    wanted = run.parallel
    dp_shard = wanted.dp_shard or max(1, ranks // (wanted.dp_replicate * wanted.tp))
    setup = Setup(
        wanted.dp_replicate, dp_shard, wanted.tp, wanted.ep, wanted.activation_checkpointing, run.micro_batch_size
    )
    if setup.ranks != ranks:
        raise ConfigError(
            f"parallel.dp_replicate x dp_shard x tp = {setup.dp_replicate} x {dp_shard} x {setup.tp} is {setup.ranks}, "
            f"but --gpus is {ranks}; make them equal, or leave parallel.* out to get a layout"
        )
    if setup not in set(setups(run, ranks, node=node)):
        raise ConfigError(
            f"{setup.overrides()} cuts heads, experts or the {run.batch_size} rows of a step unevenly; change one of "
            "them, or leave parallel.* out to get a layout"
        )
    return setup


def refusal(planner: Planner, budget: Budget) -> str:
    """Why the layout doesn't fit, and one that does."""
    largest = max(budget.memory, key=lambda name: budget.memory[name])
    text = (
        f"{budget.setup.overrides()} needs {_gb(budget.bytes)} GB a GPU of {_gb(budget.limit)}, "
        f"{_gb(budget.memory[largest])} of it {largest}"
    )
    found = fastest(planner, budget.setup.ranks)
    if found is None:
        return f"{text}. {_too_few(planner, budget.setup.ranks)}"
    return f"{text}; this fits, with {_gb(found.bytes)} GB and {found.step:.3g} s a step: {found.setup.overrides()}"


def _too_few(planner: Planner, ranks: int) -> str:
    budgets = [planner.budget(setup) for setup in setups(planner.run, ranks, node=planner.rates.node)]
    if not budgets:
        return f"{planner.run.batch_size} rows a step can't be dealt to {ranks} GPUs; choose a divisor"
    least = min(budgets, key=lambda budget: budget.bytes)
    more = ranks * 2
    while more <= MOST and fastest(planner, more) is None:
        more *= 2
    advice = f"take --gpus {more}" if more <= MOST else "lower data.sequence_length or data.max_images"
    return (
        f"no layout of {ranks} GPUs fits: the smallest needs {_gb(least.bytes)} GB a GPU of {_gb(least.limit)} "
        f"({least.setup.overrides()}); {advice}"
    )


def table(budget: Budget, *, name: str, gpu: str) -> list[str | Table]:
    """The budget as people read it: lines and tables."""
    memory = Table("memory of a GPU", Column("GB", justify="right"))
    for part, value in budget.memory.items():
        memory.add_row(part, _gb(value), end_section=part == [*budget.memory][-1])
    memory.add_row("all", _gb(budget.bytes))
    memory.add_row("there is", _gb(budget.limit))
    work = Table("a step", Column("PFLOP forward", justify="right"), Column("s", justify="right"))
    for part, value in budget.seconds.items():
        flops = f"{budget.flops[part] / 1e15:.2f}" if part in budget.flops else ""
        work.add_row(part, flops, f"{value:.3f}", end_section=part == [*budget.seconds][-1])
    work.add_row("all", f"{sum(budget.flops.values()) / 1e15:.2f}", f"{budget.step:.3f}")
    return [
        f"{name} on {budget.setup.ranks} x {gpu}: {budget.setup.overrides()}",
        memory,
        work,
        f"{budget.steps:,} steps: {budget.days:.1f} days, {budget.hours:,.0f} GPU-hours, MFU {budget.mfu:.0%}",
    ]


def save(budget: Budget, path: Path, *, name: str, gpu: str) -> None:
    """Write the budget as JSON: bytes, FLOPs, seconds."""
    said: dict[str, Any] = {"recipe": name, "gpu": gpu, "gpus": budget.setup.ranks, **asdict(budget)}
    said |= {"setup": budget.setup._asdict(), "fits": budget.fits, "bytes": budget.bytes, "step_seconds": budget.step}
    said |= {"days": budget.days, "gpu_hours": budget.hours}
    path.write_text(json.dumps(said, indent=2) + "\n")


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f}"

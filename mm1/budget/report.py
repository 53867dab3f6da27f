"""What `mm1 budget` prints and saves: the budget of the requested layout, or of the fastest one that fits."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.table import Column, Table

from mm1.budget.hardware import GPUS, Shapes, measure_cpu
from mm1.budget.memory_table import gigabytes, memory_table
from mm1.budget.parallel_layout import ParallelLayout, layouts
from mm1.budget.planner import Budget, Planner, fastest_budget
from mm1.config.base import ConfigError, nearest
from mm1.config.run import ParallelConfig, RunConfig
from mm1.objectives.index import objective_of

MAX_GPUS = 4096
"""The largest number of GPUs that is tried when no layout fits."""


def make_planner(run: RunConfig, *, gpu: str, gpus: int) -> Planner:
    """A planner of the run on `gpus` devices: `gpu` is a key of `GPUS`, or `cpu` for this machine, measured now.

    Raises:
        ConfigError: there is no such GPU.
    """
    if gpu != "cpu" and gpu not in GPUS:
        raise ConfigError(f"there are no figures for {gpu!r}; {nearest(gpu, [*GPUS, 'cpu'])}")
    on_cpu = gpu == "cpu"
    precision = torch.float32 if run.precision == "fp32" or (on_cpu and run.precision == "auto") else torch.bfloat16
    return Planner(run, measure_cpu(shapes_of(run), ranks=gpus) if on_cpu else GPUS[gpu], precision=precision)


def shapes_of(run: RunConfig) -> Shapes:
    """The shapes that a processor is measured with: of the decoder, or of the encoder where there is no decoder."""
    if "decoder" not in objective_of(run).parts:
        vision, patches = run.model.vision, run.model.vision.grid.cells
        tokens = run.micro_batch_size * run.data.max_images * patches
        return Shapes(tokens, vision.width, vision.mlp_width, vision.width // vision.heads, patches)
    decoder, length = run.model.decoder, run.data.sequence_length
    return Shapes(run.micro_batch_size * length, decoder.width, decoder.mlp_width, decoder.head_width, length)


def choose_budget(planner: Planner, ranks: int) -> Budget:
    """The budget of the layout in `run.parallel`; if that is empty, of the fastest layout that fits.

    Raises:
        ConfigError: the layout is for another number of ranks or divides something unevenly, or no layout fits.
    """
    if planner.run.parallel != ParallelConfig():
        return planner.budget(requested_layout(planner.run, ranks, node=planner.hardware.node_size))
    fastest = fastest_budget(planner, ranks)
    if fastest is None:
        raise ConfigError(_no_layout_fits(planner, ranks))
    return fastest


def requested_layout(run: RunConfig, ranks: int, *, node: int) -> ParallelLayout:
    """The layout in `run.parallel` on `ranks` ranks, `node` of them on each machine.

    Raises:
        ConfigError: it is for another number of ranks, or divides the model or the sequences of a step unevenly.
    """
    parallel = run.parallel
    dp_shard = parallel.dp_shard or max(1, ranks // (parallel.dp_replicate * parallel.tp))
    layout = ParallelLayout(
        dp_replicate=parallel.dp_replicate,
        dp_shard=dp_shard,
        tp=parallel.tp,
        ep=parallel.ep,
        activation_checkpointing=parallel.activation_checkpointing,
        micro_batch_size=run.micro_batch_size,
    )
    if layout.ranks != ranks:
        raise ConfigError(
            f"parallel.dp_replicate x dp_shard x tp = {layout.dp_replicate} x {dp_shard} x {layout.tp} is "
            f"{layout.ranks}, but --gpus is {ranks}; make them equal, or leave parallel.* out to get a layout"
        )
    if layout not in set(layouts(run, ranks, node=node)):
        raise ConfigError(
            f"{layout.overrides()} divides heads, experts or the {run.batch_size} sequences of a step unevenly; "
            "change one of them, or leave parallel.* out to get a layout"
        )
    return layout


def explain_misfit(planner: Planner, budget: Budget) -> str:
    """Why the layout doesn't fit, and the fastest one that does."""
    largest = max(budget.memory, key=lambda name: budget.memory[name])
    reason = (
        f"{budget.layout.overrides()} needs {gigabytes(budget.bytes)} GB of the {gigabytes(budget.limit)} GB of a GPU; "
        f"{gigabytes(budget.memory[largest])} GB are {largest}"
    )
    fastest = fastest_budget(planner, budget.layout.ranks)
    if fastest is None:
        return f"{reason}. {_no_layout_fits(planner, budget.layout.ranks)}"
    return (
        f"{reason}. This layout fits, with {gigabytes(fastest.bytes)} GB and {fastest.step_seconds:.3g} s a step: "
        f"{fastest.layout.overrides()}"
    )


def _no_layout_fits(planner: Planner, ranks: int) -> str:
    budgets = [planner.budget(layout) for layout in layouts(planner.run, ranks, node=planner.hardware.node_size)]
    if not budgets:
        return f"batch_size {planner.run.batch_size} can't be divided among {ranks} GPUs; choose a divisor for --gpus"
    smallest = min(budgets, key=lambda budget: budget.bytes)
    more = ranks * 2
    while more <= MAX_GPUS and fastest_budget(planner, more) is None:
        more *= 2
    advice = f"take --gpus {more}" if more <= MAX_GPUS else "lower data.sequence_length or data.max_images"
    return (
        f"no layout of {ranks} GPUs fits: the smallest needs {gigabytes(smallest.bytes)} GB of the "
        f"{gigabytes(smallest.limit)} GB of a GPU ({smallest.layout.overrides()}); {advice}"
    )


def tables(budget: Budget, *, name: str, gpu: str) -> list[str | Table]:
    """The budget of the run `name` for a terminal: lines of text and tables, in order."""
    memory = memory_table("memory of a GPU", budget.memory, limit=budget.limit)
    work = Table("a step", Column("PFLOP forward", justify="right"), Column("s", justify="right"))
    for part, value in budget.seconds.items():
        if part in budget.flops and not value:  # the model has no such part
            continue
        flops = f"{budget.flops[part] / 1e15:.2f}" if part in budget.flops else ""
        work.add_row(part, flops, f"{value:.3f}", end_section=part == [*budget.seconds][-1])
    work.add_row("total", f"{sum(budget.flops.values()) / 1e15:.2f}", f"{budget.step_seconds:.3f}")
    return [
        f"{name} on {budget.layout.ranks} x {gpu}: {budget.layout.overrides()}",
        memory,
        work,
        f"{budget.steps:,} steps: {budget.days:.1f} days, {budget.gpu_hours:,.0f} GPU-hours, MFU {budget.mfu:.0%}",
    ]


def save_json(budget: Budget, path: Path, *, name: str, gpu: str) -> None:
    """Write the budget of the run `name` as JSON, in bytes, FLOPs and seconds."""
    content: dict[str, Any] = {"recipe": name, "gpu": gpu, "gpus": budget.layout.ranks, **asdict(budget)}
    content |= {
        "layout": budget.layout._asdict(),
        "fits": budget.fits,
        "bytes": budget.bytes,
        "step_seconds": budget.step_seconds,
        "days": budget.days,
        "gpu_hours": budget.gpu_hours,
    }
    path.write_text(json.dumps(content, indent=2) + "\n")

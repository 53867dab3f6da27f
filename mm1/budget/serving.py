"""What a server of a run takes in memory, and how many requests it can answer at a time.

Weights, the key/value cache and kept features are counted from shapes. What a pass holds for a moment comes from the
model on tensors without data, as in `simulate`, and from the shapes of gathered rows and logits.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Column, Table

from mm1.budget.hardware import GPUS
from mm1.budget.memory_table import gigabytes, memory_table
from mm1.budget.simulate import pass_bytes
from mm1.config.base import ConfigError, nearest
from mm1.config.run import RunConfig
from mm1.dist import machine_memory
from mm1.generate.prompt import IMAGES_PER_PASS
from mm1.generate.prompt_lookup import MAX_DRAFT
from mm1.generate.serving import ServingSizes
from mm1.model.cache import SCORES_AT_ONCE
from mm1.model.mllm import MLLM
from mm1.objectives.index import generates_text
from mm1.serve.limits import Limits

SAMPLING = 36
"""Bytes that the selection of a token holds for each logit: copies, with temperature and top-p also scaled logits,
probabilities, their order and random numbers. Measured by `tests/test_budget_serving.py`."""

MOST_ROWS = 1 << 16
"""The largest number of rows that is tried."""


@dataclass(frozen=True, slots=True)
class Device:
    """Where a server runs: `name` is a key of `GPUS` or `cpu`, `memory` the bytes that tensors may take."""

    name: str
    memory: float

    @property
    def is_gpu(self) -> bool:
        return self.name != "cpu"


def device_of(gpu: str, *, memory: float | None = None) -> Device:
    """The device `gpu`, with all its memory or with `memory` bytes of it.

    Raises:
        ConfigError: there is no such GPU.
    """
    if gpu != "cpu" and gpu not in GPUS:
        raise ConfigError(f"there are no figures for {gpu!r}; {nearest(gpu, [*GPUS, 'cpu'])}")
    return Device(gpu, memory or (machine_memory() if gpu == "cpu" else GPUS[gpu].memory))


class ServingPlanner:
    """The memory of servers of one run on one device, by their limits."""

    def __init__(self, run: RunConfig, device: Device, *, max_prefill: int = Limits().max_prefill):
        """Computes in bf16 on a GPU and in fp32 on a CPU, unless `run.precision` says otherwise.

        Raises:
            ConfigError: the run writes no text.
        """
        if not generates_text(run):
            raise ConfigError(f"objective {run.objective} trains an encoder, which writes no text; nothing to serve")
        self.run, self.device = run, device
        precision = run.precision if run.precision != "auto" else "bf16" if device.is_gpu else "fp32"
        self.precision = torch.bfloat16 if precision == "bf16" else torch.float32
        with torch.device("meta"):
            self.model = MLLM(run.model).to(self.precision)
        self.weights = sum(weight.nbytes for weight in self.model.parameters())
        images = min(IMAGES_PER_PASS, math.ceil(max_prefill / run.model.tile_features) + 1)
        self._pass = pass_bytes(run.model, precision=self.precision, positions=max_prefill, images=images)

    def budget(self, limits: Limits) -> "ServingBudget":
        """What a server with these limits takes."""
        rows, kept = limits.max_concurrent, limits.kept_prompts
        of_row = ServingSizes(1, limits.max_length).cache_bytes(self.model)
        memory: dict[str, float] = {
            "weights": self.weights,
            f"cache: {rows} x {limits.max_length:,} positions": rows * of_row,
            f"cache: {kept} x {limits.max_length:,} that only remember": kept * of_row,
            "a pass": self._work(rows, of_row=of_row, length=limits.max_length),
        }
        host: dict[str, float] = {
            "features of pictures": limits.max_feature_bytes,
            "decoded pictures": limits.max_pixel_bytes,
            "bodies of requests": limits.max_bodies_bytes,
        }
        return ServingBudget(limits, memory if self.device.is_gpu else memory | host, host, self.device.memory)

    def most(self, limits: Limits) -> "ServingBudget":
        """The budget with the largest `max_concurrent` that fits; with 1 if none does."""
        fewest, beyond = 1, MOST_ROWS
        while beyond - fewest > 1:
            middle = (fewest + beyond) // 2
            if self.budget(replace(limits, max_concurrent=middle)).fits:
                fewest = middle
            else:
                beyond = middle
        return self.budget(replace(limits, max_concurrent=fewest))

    def _work(self, rows: int, *, of_row: int, length: int) -> float:
        """The most bytes that a pass holds for a moment: one that encodes, one over prompts, or one that writes."""
        decoder = self.run.model.decoder
        # a pass over prompts reads copies of their rows, layer by layer; on a GPU keys stand there for every head
        gathered = rows * of_row / decoder.layers * (decoder.heads / decoder.kv_heads if self.device.is_gpu else 1)
        tokens, size = 1 + MAX_DRAFT, self.precision.itemsize
        logits = decoder.vocabulary * (tokens * (4 + (size if size < 4 else 0)) + SAMPLING)
        scores = min(SCORES_AT_ONCE, rows * decoder.heads * tokens * length) * (4 + 2 * size)
        writes = rows * (tokens * self._pass.of_position + logits) + (scores if self.device.is_gpu else 0)
        return max(self._pass.encoder, self._pass.decoder + gathered, writes)


@dataclass(frozen=True, slots=True)
class ServingBudget:
    """Bytes on the device by what holds them, and on the machine beside a GPU, at most."""

    limits: Limits
    memory: dict[str, float]
    host: dict[str, float]
    limit: float

    @property
    def bytes(self) -> float:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.bytes <= self.limit


def serving_tables(planner: ServingPlanner, budget: ServingBudget) -> list[str | Table]:
    """The budget for a terminal, and how many requests of other lengths fit."""
    limits, gpu = budget.limits, planner.device.name
    title = "memory of the GPU" if planner.device.is_gpu else "memory"
    memory = memory_table(title, budget.memory, limit=budget.limit)
    lengths = Table("--max-length", *(Column(name, justify="right") for name in ("MB of a row", "requests at a time")))
    for length in (limits.max_length // 4, limits.max_length // 2, limits.max_length, 2 * limits.max_length):
        other = planner.most(replace(limits, max_length=length))
        of_row = ServingSizes(1, length).cache_bytes(planner.model)
        lengths.add_row(f"{length:,}", f"{of_row / 1e6:.1f}", f"{other.limits.max_concurrent if other.fits else 0:,}")
    precision = str(planner.precision).removeprefix("torch.")
    options = f"--max-concurrent {limits.max_concurrent} --max-length {limits.max_length}"
    parts: list[str | Table] = [f"{planner.run.recipe} served on {gpu} in {precision}: {options}", memory, lengths]
    if planner.device.is_gpu:
        beside = " + ".join(f"{gigabytes(value)} {part}" for part, value in budget.host.items())
        parts.append(f"beside it, GB of the machine's memory at most: {beside}")
    return parts


def explain_serving(planner: ServingPlanner, budget: ServingBudget) -> str:
    """Why a server doesn't fit, and what does."""
    limits, most = budget.limits, planner.most(budget.limits)
    reason = (
        f"--max-concurrent {limits.max_concurrent} with --max-length {limits.max_length} needs "
        f"{gigabytes(budget.bytes)} GB of {gigabytes(budget.limit)} GB"
    )
    if most.fits:
        return f"{reason}; --max-concurrent {most.limits.max_concurrent} fits"
    return f"{reason}, {gigabytes(planner.weights)} GB of them weights; take a shorter --max-length or more memory"


def save_serving(planner: ServingPlanner, budget: ServingBudget, path: Path) -> None:
    """Write the budget as JSON, in bytes."""
    limits = budget.limits
    content: dict[str, Any] = {
        "recipe": planner.run.recipe,
        "gpu": planner.device.name,
        "max_concurrent": limits.max_concurrent,
        "max_length": limits.max_length,
        "kept_prompts": limits.kept_prompts,
        "memory": budget.memory,
        "host": budget.host,
        "bytes": budget.bytes,
        "limit": budget.limit,
        "fits": budget.fits,
    }
    path.write_text(json.dumps(content, indent=2) + "\n")

"""The training loop: one for every stage. Data, loss and numbers differ; the steps don't."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from mm1.config import RunConfig
from mm1.document import Batch
from mm1.train.log import RunLog
from mm1.train.loss import Loss, Objective
from mm1.train.meter import Meter
from mm1.train.optim import rate

MAX_BROKEN = 1000
"""Undecodable images after which a run stops: then the data is at fault, not a picture."""


@dataclass(slots=True)
class Trainer:
    """What a run needs at every step. `peak` is the peak learning rate."""

    config: RunConfig
    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    device: torch.device
    precision: torch.dtype
    peak: float


def train(
    trainer: Trainer,
    steps: Iterator[list[Batch]],
    *,
    start: int,
    log: RunLog,
    meter: Meter,
    broken: int,
    after_step: Callable[[int], None],
) -> None:
    """Do the run's steps from `start` on. `after_step(step)` saves and validates when due.
    `broken` pictures of the steps before could not be decoded.

    The gradient of a step is that of the summed loss of all its rows over their trained weight (tokens,
    pairs), and of the router losses' mean over its rows, whatever the micro-batches are.

    Raises:
        FloatingPointError: the loss or the gradient is not finite; the checkpoint before is untouched.
    """
    run = trainer.config
    for step in range(start, run.steps):
        waited = time.perf_counter()
        batches = next(steps)
        waited = time.perf_counter() - waited
        weight = sum(trainer.objective.weight(batch) for batch in batches)
        rows = sum(len(batch.tokens_BT) for batch in batches)
        learning_rate = rate(run.optim, step, steps=run.steps, peak=trainer.peak)
        for group in trainer.optimizer.param_groups:
            group["lr"] = learning_rate
        losses = []
        for batch in batches:
            with torch.autocast(trainer.device.type, trainer.precision, enabled=trainer.precision != torch.float32):
                loss = trainer.objective.loss(batch.to(trainer.device))
            loss.objective(weight=weight, rows=rows).backward()
            losses.append(loss.detach())
        norm = float(nn.utils.clip_grad_norm_(trainer.model.parameters(), run.optim.clip_norm))
        total = Loss.sum(losses)
        if not (math.isfinite(norm) and math.isfinite(float(total.total))):
            raise FloatingPointError(
                f"step {step + 1}: loss {float(total.total):.4g}, gradient norm {norm:.4g}; not finite. "
                f"Lower optim.learning_rate (now {learning_rate:.2e}) or look at its first row: "
                f"mm1 show {log.folder} --row {step * run.batch_rows}"
            )
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)
        broken = _count_broken(broken, batches, log)
        figures = meter.step(batches, waited=waited)
        log.step(
            step + 1,
            total.metrics(trainer.objective.sources)
            | {"learning_rate": learning_rate, "gradient_norm": norm, "broken_images": broken}
            | figures,
        )
        after_step(step + 1)


def _count_broken(broken: int, batches: list[Batch], log: RunLog) -> int:
    for name in (name for batch in batches for name in batch.broken):
        broken += 1
        log.say(f"grey picture instead of a broken one: {name}")
        if broken >= MAX_BROKEN:
            raise ValueError(f"{broken} pictures of this run could not be decoded, the last {name}; check the store")
    return broken


@torch.no_grad()
def validate(trainer: Trainer, batches: Iterator[Batch]) -> dict[str, float]:
    """The mean loss (and what else the objective measures) over `batches`."""
    trainer.model.eval()
    losses = []
    for batch in batches:
        with torch.autocast(trainer.device.type, trainer.precision, enabled=trainer.precision != torch.float32):
            losses.append(trainer.objective.loss(batch.to(trainer.device)))
    trainer.model.train()
    return Loss.sum(losses).metrics([])

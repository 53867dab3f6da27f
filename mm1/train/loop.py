"""The training loop: one for every stage. Data, loss and numbers differ; the steps don't."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from mm1.config.run import RunConfig
from mm1.document import Batch
from mm1.objectives.loss import Loss, Objective
from mm1.train.coordinator import Ranks
from mm1.train.guard import Guard, Verdict
from mm1.train.health import Health
from mm1.train.log import RunLog
from mm1.train.meter import Meter, over_ranks
from mm1.train.parallel import clip
from mm1.train.schedule import rate, set_rate

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
    guard: Guard,
    health: Health,
    ranks: Ranks,
    broken: int,
    after_step: Callable[[int], None],
) -> bool:
    """Do the run's steps from `start` on; whether the last is done. If not, the loss had a spike, and the run must be
    taken up from its newest checkpoint. `after_step(step)` saves and validates when due. `broken` pictures of the
    steps before could not be decoded.

    The gradient of a step is that of the summed loss of all its rows over their trained weight (tokens,
    pairs), and of the router losses' mean over its rows, whatever the micro-batches are.

    Raises:
        FloatingPointError: steps in a row whose loss or gradient is not finite, or too many spikes; the checkpoint
            before is untouched.
    """
    run = trainer.config
    for step in range(start, run.steps):
        ranks.at(step + 1, "waiting for data")
        waited = time.perf_counter()
        batches = next(steps)
        waited = time.perf_counter() - waited
        weight = ranks.weight(step, batches, sum(trainer.objective.weight(batch) for batch in batches))
        learning_rate = rate(run.optim, step, steps=run.steps, peak=trainer.peak)
        set_rate(trainer.optimizer, learning_rate)
        losses = []
        for batch in batches:
            with torch.autocast(trainer.device.type, trainer.precision, enabled=trainer.precision != torch.float32):
                loss = trainer.objective.loss(batch.to(trainer.device))
            loss.objective(weight=weight, rows=run.batch_size).backward()
            losses.append(loss.detach())
        seen = health.look(step, batches)
        norm = clip(trainer.model.parameters(), largest=run.optim.clip_norm)
        total = Loss.sum(ranks.together(Loss.sum(losses)))
        found = total.metrics(trainer.objective.sources)
        verdict = guard.judge(step, loss=found["loss"], norm=norm)
        if verdict is Verdict.rewind:
            return False
        if verdict is Verdict.learn:
            trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)
        figures = ranks.together((meter.step(batches, waited=waited), [n for batch in batches for n in batch.broken]))
        broken = _count_broken(broken, [name for _, names in figures for name in names], log)
        found |= {"learning_rate": learning_rate, "gradient_norm": norm, "broken_images": broken}
        found |= {"skipped": 1} if verdict is Verdict.skip else {}
        log.step(step + 1, found | over_ranks([mine for mine, _ in figures]) | seen)
        if guard.sound or step + 1 == run.steps:
            after_step(step + 1)
    return True


def _count_broken(broken: int, names: list[str], log: RunLog) -> int:
    for name in names:
        broken += 1
        log.say(f"grey picture instead of a broken one: {name}")
        if broken >= MAX_BROKEN:
            raise ValueError(f"{broken} pictures of this run could not be decoded, the last {name}; check the store")
    return broken


@torch.no_grad()
def validate(trainer: Trainer, batches: Iterable[Batch]) -> dict[str, float]:
    """The mean loss (and what else the objective measures) over `batches`."""
    trainer.model.eval()
    losses = []
    for batch in batches:
        with torch.autocast(trainer.device.type, trainer.precision, enabled=trainer.precision != torch.float32):
            losses.append(trainer.objective.loss(batch.to(trainer.device)))
    trainer.model.train()
    return Loss.sum(losses).metrics([])

"""The training loop: one for every stage. Data, objective and numbers differ; the steps don't."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from mm1 import dist
from mm1.checkpoint import Saver
from mm1.config.run import RunConfig
from mm1.data.loader import Sequences
from mm1.dist import DataRanks
from mm1.document import Batch
from mm1.objectives.loss import Loss, Objective
from mm1.train.coordinator import Coordinator
from mm1.train.guard import Guard, Verdict
from mm1.train.health import Health
from mm1.train.log import RunLog, read_metrics
from mm1.train.meter import Meter, over_ranks, peak_flops
from mm1.train.parallel import ParallelDims, clip, prepare_backward, release_gathered
from mm1.train.profile import Profile
from mm1.train.schedule import rate, set_rate
from mm1.train.trackers import open_trackers

MAX_BROKEN = 1000
"""A run with so many undecodable images stops: the data must be wrong, not an image."""


@dataclass(frozen=True, slots=True)
class Learner:
    """What learns: the objective of a run with its model, and the optimizer with its peak learning rate."""

    run: RunConfig
    objective: Objective
    optimizer: torch.optim.Optimizer
    peak: float
    precision: torch.dtype


class Trainer:
    """A run in training: all that its steps need, and how many of them are done."""

    def __init__(
        self, learner: Learner, folder: Path, *, dims: ParallelDims, held_out: dict[str, Sequences], done: int
    ):
        """`held_out` are the validation sets by name; `done` steps were done before."""
        self.run, self.done, self.held_out = learner.run, done, held_out
        self.objective, self.model, self.optimizer = learner.objective, learner.objective.model, learner.optimizer
        self._peak, self._device, self._dims = learner.peak, dist.device(), dims
        self._ranks = DataRanks(dims.data_rank, dims.data_ranks, dims.tp)
        run = self.run
        self.saver = Saver(folder, run.checkpoints)
        self.coordinator = Coordinator(data_rank=dims.data_rank)
        trackers = open_trackers(folder, run) if dist.rank() == 0 else ()
        self.log = RunLog(folder, start=done, steps=run.steps, trackers=trackers)
        records = dist.on_rank_zero(lambda: read_metrics(folder))
        # the ranks of a tensor-parallel group count the same tokens and share the work
        self.meter = Meter(run, peak=dims.tp * peak_flops(self._device, learner.precision))
        self.guard = Guard(run, folder, say=self.log.say, forget=self.saver.forget, records=records)
        self.health = Health(self.model, lambda batch: self.mean_loss([[batch]]), every=run.health_every)
        self.broken_images = max((record.get("broken_images", 0) for record in records), default=0)
        self.profile = Profile(folder, run.profile)
        self.profile.after(done)

    def step(self, batches: list[Batch]) -> Verdict:
        """Do the next step with its micro-batches, and say what the guard decided.

        The gradient is that of the summed loss of all sequences of the step over their weight (tokens, pairs), and of
        the router losses' mean over sequences, however these are divided into micro-batches.

        Raises:
            FloatingPointError: too many steps in a row whose loss or gradient is not finite, or too many spikes; the
                last checkpoint is untouched.
        """
        weight = sum(self.objective.weight(batch) for batch in batches)
        weight = self.coordinator.total_weight(self.done, batches, weight=weight)
        learning_rate = rate(self.run.optim, self.done, steps=self.run.steps, peak=self._peak)
        set_rate(self.optimizer, learning_rate)
        losses = []
        of_batches = self.objective.losses(batches, ranks=self._ranks, device=self._device)
        for number, loss in enumerate(of_batches, start=1):
            prepare_backward(self.model, self._dims, last=number == len(batches))
            loss.scaled(weight=weight, sequences=self.run.batch_size).backward()
            losses.append(loss.detach())
        health = self.health.look(self.done, batches)
        norm = clip(self.model.parameters(), largest=self.run.optim.clip_norm)
        total = Loss.sum(self.coordinator.gather(Loss.sum(losses)))
        metrics = total.metrics(self.objective.sources)
        verdict = self.guard.judge(self.done, loss=metrics["loss"], norm=norm)
        if verdict is Verdict.rewind:
            return verdict
        if verdict is Verdict.learn:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        metrics |= {"learning_rate": learning_rate, "gradient_norm": norm}
        metrics |= {"skipped": 1} if verdict is Verdict.skip else {}
        self.log.step(self.done, metrics | self._measure(batches) | health)
        return verdict

    def validate(self) -> None:
        """Log the mean loss over each validation set."""
        self.coordinator.enter("validating", self.done)
        metrics: dict[str, float] = {}
        for name, sequences in self.held_out.items():
            for metric, value in self.mean_loss(_first_steps(sequences, self.run)).items():
                metrics[f"validation/{name}" if metric == "loss" else f"validation/{name}/{metric}"] = value
        self.log.validation(self.done, metrics)

    def validate_if_due(self) -> None:
        """Validate after the last step and every `validate_every` steps."""
        every = self.run.validate_every
        if self.held_out and (self.done == self.run.steps or (every and self.done % every == 0)):
            self.validate()

    def save_if_due(self) -> None:
        """Write a checkpoint after the last step and every `checkpoint_every` steps."""
        if self.done == self.run.steps or self.done % self.run.checkpoint_every == 0:
            self.coordinator.enter("saving a checkpoint", self.done)
            self.save()

    def save(self) -> None:
        """Write a checkpoint of the present state."""
        self.saver.save(self.done, self.model, self.optimizer)

    @torch.no_grad()
    def mean_loss(self, steps: Iterable[list[Batch]]) -> dict[str, float]:
        """The mean loss over the micro-batches of `steps`, and the other metrics of the objective; all of this rank."""
        self.model.eval()
        losses = [
            loss for batches in steps for loss in self.objective.losses(batches, ranks=DataRanks(), device=self._device)
        ]
        release_gathered(self.model)
        self.model.train()
        return Loss.sum(losses).metrics([])

    def _measure(self, batches: list[Batch]) -> dict[str, float]:
        """The metrics of the meter over all ranks, and the broken images so far."""
        names = [name for batch in batches for name in batch.broken]
        by_rank = self.coordinator.gather((self.meter.step(batches), names))
        for name in [name for _, names in by_rank for name in names]:
            self.broken_images += 1
            self.log.say(f"grey image instead of a broken one: {name}")
            if self.broken_images >= MAX_BROKEN:
                raise ValueError(
                    f"{self.broken_images} images of this run could not be decoded, the last {name}; check the store"
                )
        return {"broken_images": self.broken_images} | over_ranks([metrics for metrics, _ in by_rank])


def train(trainer: Trainer, stream: Iterator[list[Batch]]) -> bool:
    """Do the steps that are left, each with the next item of `stream`; whether the last one is done.

    If not, the loss had a spike: the run must continue from its newest checkpoint, which is now one before the spike.
    """
    run = trainer.run
    while trainer.done < run.steps:
        trainer.coordinator.enter("waiting for data", trainer.done + 1)
        with trainer.meter.waiting():
            batches = next(stream)
        if trainer.step(batches) is Verdict.rewind:
            return False
        if trainer.guard.sound or trainer.done == run.steps:
            trainer.validate_if_due()
            trainer.save_if_due()  # last, since the checkpoint of the last step says that the run is done
            trainer.profile.after(trainer.done)
            trainer.meter.restart()
    return True


def _first_steps(sequences: Sequences, run: RunConfig) -> Iterator[list[Batch]]:
    """The first sequences of a validation set, at most one epoch of them, in steps as large as those of training.

    Every rank does all of them.
    """
    count = min(run.validation_sequences, sequences.sources[0].plan.epoch_sequences)
    for step in range(0, count, run.batch_size):
        end = min(step + run.batch_size, count)
        firsts = range(step, end, run.micro_batch_size)
        yield [sequences.batch(list(range(first, min(first + run.micro_batch_size, end)))) for first in firsts]

"""The loss of a batch, and what an objective must give."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

import torch
from torch import nn

from mm1.config.base import ConfigError
from mm1.config.run import RunConfig
from mm1.dist import DataRanks
from mm1.document import Batch
from mm1.model.moe import Routing

ModelPart = Literal["vision", "connector", "decoder", "logits"]


@dataclass(slots=True)
class Loss:
    """The loss of a batch, summed; divide by `weight` for its mean.

    `weight` is a tensor if the device computed it. `by_source` are the losses of each of the run's sources and
    `weight_by_source` their tokens (or pairs), without `loss_weighting`: it doesn't change the means of sources.
    `extra` holds further metrics, also summed. `routing` says how a sparse decoder used its experts. `z` is the summed
    z loss times its weight; it is minimised too, but is no part of `total`.
    """

    total: torch.Tensor
    weight: float | torch.Tensor
    by_source: torch.Tensor
    weight_by_source: torch.Tensor
    extra: dict[str, float] = field(default_factory=dict)
    routing: Routing | None = None
    z: torch.Tensor | None = None

    def scaled(self, *, weight: float, sequences: int) -> torch.Tensor:
        """What is minimised: this batch's part of the loss of a step of `weight` and `sequences`."""
        mean = (self.total if self.z is None else self.total + self.z) / max(weight, 1)
        return mean if self.routing is None else mean + self.routing.penalty / sequences

    def detach(self) -> "Loss":
        """The same loss without its graph."""
        routing = None if self.routing is None else self.routing.detach()
        z = None if self.z is None else self.z.detach()
        return replace(self, total=self.total.detach(), by_source=self.by_source.detach(), routing=routing, z=z)

    @staticmethod
    def sum(losses: list["Loss"]) -> "Loss":
        """The loss of several batches as one."""
        routing = [loss.routing for loss in losses if loss.routing is not None]
        z = [loss.z for loss in losses if loss.z is not None]
        return Loss(
            total=torch.stack([loss.total for loss in losses]).sum(),
            weight=sum(loss.weight for loss in losses),
            by_source=torch.stack([loss.by_source for loss in losses]).sum(0),
            weight_by_source=torch.stack([loss.weight_by_source for loss in losses]).sum(0),
            extra={name: sum(loss.extra[name] for loss in losses) for name in losses[0].extra},
            routing=Routing.sum(routing) if routing else None,
            z=torch.stack(z).sum() if z else None,
        )

    def metrics(self, sources: list[str]) -> dict[str, float]:
        """Means for the log: `loss`, `z_loss`, `experts/...`; `tokens/SOURCE`, and `loss/SOURCE` if that is not 0."""
        weight = max(float(self.weight), 1)
        metrics = {"loss": float(self.total) / weight}
        if self.z is not None:
            metrics["z_loss"] = float(self.z) / weight
        metrics |= {name: value / weight for name, value in self.extra.items()}
        for name, total, weight in zip(sources, self.by_source.tolist(), self.weight_by_source.tolist(), strict=False):
            metrics[f"tokens/{name}"] = weight
            if weight:
                metrics[f"loss/{name}"] = total / weight
        return metrics if self.routing is None else metrics | self.routing.metrics()


class Objective(ABC):
    """What a run learns: a model, and its loss over batches.

    The name of a subclass in `objectives/index.py` is the value of `objective` in a run's config.
    """

    unit: ClassVar[str]
    """What the weight of a batch counts, in the singular: the loss is a mean over these."""

    units: ClassVar[str]
    """The same in the plural."""

    learns: ClassVar[str]
    """What a model does that has learned it, after the model's name: `predicts ...`."""

    parts: ClassVar[frozenset[ModelPart]]
    """The parts of `ModelConfig` that the model has; `logits` if it predicts tokens, and so can generate text."""

    model: nn.Module
    sources: list[str]

    @classmethod
    @abstractmethod
    def check(cls, run: RunConfig) -> None:
        """Refuse settings that this objective would ignore.

        Raises:
            ConfigError: the run sets one.
        """

    @classmethod
    @abstractmethod
    def build(cls, run: RunConfig, sources: list[str]) -> Self:
        """The objective of a run, with a new model that has `initialise(seed)`.

        `sources` are the names of the run's sources, in the order of `Batch.source_B`.
        """

    @abstractmethod
    def weight(self, batch: Batch) -> float:
        """How much a batch counts in its step. Known before the forward pass, so accumulation is exact."""

    @abstractmethod
    def loss(self, batch: Batch) -> Loss:
        """The loss of a batch that is on the model's device."""

    def losses(self, batches: Sequence[Batch], *, ranks: DataRanks, device: torch.device) -> Iterator[Loss]:
        """The loss of each micro-batch of a step, in any order; propagate each back before you ask for the next.

        `ranks` have the step's other micro-batches, as many each. Here every micro-batch has a loss of its own.
        """
        for batch in batches:
            yield self.loss(batch.to(device))


def refuse_pixels(run: RunConfig) -> None:
    """Refuse a head for pixels, which only `autoregressive_pixels` has.

    Raises:
        ConfigError: the run sets one.
    """
    if run.pixels is not None:
        raise ConfigError(f"objective {run.objective} predicts no pixels; set pixels=null")

"""The loss of a batch, and what an objective must give."""

from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from mm1.document import Batch
from mm1.model.moe import Routing


@dataclass(slots=True)
class Loss:
    """The loss of a batch, summed; divide by `weight` for its mean.

    `by_source` and `weight_by_source` split both over the run's sources; `extra` holds further
    figures, summed over the weight too. `routing` is what a sparse decoder's experts did. `z` is the z loss
    times its weight, summed; minimised too, but no part of `total`.
    """

    total: torch.Tensor
    weight: int
    by_source: torch.Tensor
    weight_by_source: torch.Tensor
    extra: dict[str, float] = field(default_factory=dict)
    routing: Routing | None = None
    z: torch.Tensor | None = None

    def objective(self, *, weight: int, rows: int) -> torch.Tensor:
        """This batch's part in the loss of a step of `weight` and `rows`: what is minimised."""
        mean = (self.total if self.z is None else self.total + self.z) / max(weight, 1)
        return mean if self.routing is None else mean + self.routing.penalty / rows

    def detach(self) -> "Loss":
        routing = None if self.routing is None else self.routing.detach()
        z = None if self.z is None else self.z.detach()
        return replace(self, total=self.total.detach(), routing=routing, z=z)

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
        """Means for the log: `loss`, `loss/SOURCE` where it had rows, `tokens/SOURCE`, `z_loss`, `experts/...`."""
        found = {"loss": float(self.total) / max(self.weight, 1)}
        if self.z is not None:
            found["z_loss"] = float(self.z) / max(self.weight, 1)
        found |= {name: value / max(self.weight, 1) for name, value in self.extra.items()}
        for name, total, weight in zip(sources, self.by_source.tolist(), self.weight_by_source.tolist(), strict=False):
            found[f"tokens/{name}"] = weight
            if weight:
                found[f"loss/{name}"] = total / weight
        return found if self.routing is None else found | self.routing.metrics()


class Objective(Protocol):
    """A loss over batches. `weight` is known before the forward pass, so accumulation is exact."""

    sources: list[str]

    def weight(self, batch: Batch) -> int: ...

    def loss(self, batch: Batch) -> Loss: ...

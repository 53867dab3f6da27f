"""The health of a model every so many steps: the gradient norm of each part, and the activations of its layers.

Activations come from an extra forward pass without gradient, on the micro-batch with the most images. It changes
nothing that is trained: weights are the same bit for bit with and without it.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from mm1.document import Batch
from mm1.train.compilation import uncompiled
from mm1.train.parallel import gradient_norm

HUGE = 20.0
"""A value of more than so many times the RMS counts as huge. No normally distributed value is; "massive activations"
(arXiv 2402.17762) are hundreds of times larger than the usual ones."""

DEAD = 1e-3
"""A channel with an RMS of less than this fraction of the site's counts as dead."""


class Health:
    """Looks at a model every `every` steps; never if that is 0. `forward` runs it on a batch without gradient."""

    def __init__(self, model: nn.Module, forward: Callable[[Batch], Any], *, every: int):
        self._model, self._forward, self._every = model, forward, every

    def look(self, step: int, batches: list[Batch]) -> dict[str, float]:
        """The metrics of a step (from 0) whose gradients are not yet clipped; none if the step is not due."""
        if not self._every or (step + 1) % self._every:
            return {}
        return gradient_norms(self._model) | self._activations(max(batches, key=lambda batch: batch.images))

    def _activations(self, batch: Batch) -> dict[str, float]:
        statistics: dict[str, torch.Tensor] = {}

        def record(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                statistics[name] = _statistics(output[0] if isinstance(output, tuple) else output)

            return hook

        with ExitStack() as hooks:
            for name, module in sites(self._model).items():
                hooks.callback(module.register_forward_hook(record(name)).remove)
            hooks.enter_context(uncompiled(self._model))  # it would be compiled again for every set of hooks
            self._forward(batch)
        names = ("rms", "huge", "dead")
        return {
            f"health/{site}/{metric}": value
            for site, values in statistics.items()
            for metric, value in zip(names, values.tolist(), strict=True)
        }


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """`gradient_norm/PART` of each part of the model that is trained."""
    norms = {}
    for part, module in model.named_children():
        if any(parameter.grad is not None for parameter in module.parameters()):
            norms[f"gradient_norm/{part}"] = float(gradient_norm(module.parameters()))
    return norms


def sites(model: nn.Module) -> dict[str, nn.Module]:
    """The modules to look at: the first, middle and last block of each part; the part itself if it has no blocks."""
    modules = {}
    for part, module in model.named_children():
        blocks = getattr(module, "blocks", None)
        if blocks is None:
            modules[part] = module
        else:
            layers = sorted({0, len(blocks) // 2, len(blocks) - 1})
            modules |= {f"{part}.blocks.{layer}": blocks[layer] for layer in layers}
    return modules


def _statistics(x: torch.Tensor) -> torch.Tensor:
    """RMS, share of huge values, share of dead channels. Channels are the last axis; of [N, C, Y, X] the second."""
    squares = (x.movedim(1, -1) if x.ndim == 4 else x).float().square()
    channels = squares.flatten(0, -2).mean(0)
    mean = channels.mean()
    huge, dead = squares > HUGE**2 * mean, channels < DEAD**2 * mean
    return torch.stack([mean.sqrt(), huge.float().mean(), dead.float().mean()])

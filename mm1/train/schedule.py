"""The learning rate of every step."""

import math

import torch

from mm1.config.run import OptimConfig


def rate(optim: OptimConfig, step: int, *, steps: int, peak: float) -> float:
    """The learning rate of a step (from 0): linear warm-up to the peak, then `optim.schedule`."""
    if step < optim.warmup_steps:
        return peak * (step + 1) / optim.warmup_steps
    height = KINDS[optim.schedule](optim, step, steps=steps)
    return peak * (optim.final_fraction + (1 - optim.final_fraction) * height)


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every group, times the group's multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["multiplier"]


def _cosine(optim: OptimConfig, step: int, *, steps: int) -> float:
    done = (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


def _constant(optim: OptimConfig, step: int, *, steps: int) -> float:
    return 1.0


def _wsd(optim: OptimConfig, step: int, *, steps: int) -> float:
    """Warm-up, stable, decay (MiniCPM, arXiv 2404.06395): linear over the last `decay_fraction` of the steps."""
    decay = optim.decay_fraction * steps
    return min(1.0, (steps - step) / decay)


KINDS = {"cosine": _cosine, "constant": _constant, "wsd": _wsd}
"""The height of the learning rate after warm-up, from 1 (the peak) to 0 (the final fraction of it)."""

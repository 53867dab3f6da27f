"""The optimizer, its groups and its schedule."""

import math

import torch
from torch import nn

from mm1.config import OptimConfig


def build(model: nn.Module, optim: OptimConfig, *, peak: float) -> torch.optim.AdamW:
    """AdamW with decay on matrices only: norms, biases and single vectors are left alone.

    MM1 writes the decay as 0.1 x eta, outside the learning rate; torch multiplies decay by the learning
    rate itself, so the same decay is `weight_decay=0.1` here.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=peak, betas=optim.betas, eps=optim.epsilon, fused=True)


def rate(optim: OptimConfig, step: int, *, steps: int, peak: float) -> float:
    """The learning rate of a step (from 0): linear warm-up, then cosine to `final_fraction` of the peak."""
    if step < optim.warmup_steps:
        return peak * (step + 1) / optim.warmup_steps
    done = (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    return peak * (optim.final_fraction + (1 - optim.final_fraction) * cosine)

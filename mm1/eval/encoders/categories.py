"""Whether features tell categories apart: by their nearest neighbours, and by a small head that attends to patches."""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import nn

from mm1.eval.encoders.encoder import AT_ONCE, Encoder, unit
from mm1.eval.encoders.labelled import Labelled, Pictures
from mm1.model.layers import initialise, linear

NEIGHBOURS, TEMPERATURE = 20, 0.07
"""DINO's protocol (Caron et al., arXiv 2104.14294, appendix F.1): 20 neighbours, weighted by exp(cosine / 0.07)."""

EPOCHS, STEPS, BATCH, RATE, DECAY = 20, 500, 128, 1e-3, 1e-2
"""How the head of the probe learns: AdamW with a cosine to 0, for so many epochs or, of few pictures, so many steps."""

KEPT_BYTES = 2**31
"""Features of patches that take no more are computed once; more of them are computed again in each epoch."""


def nearest_neighbours(encoder: Encoder, labelled: Labelled) -> np.ndarray:
    """For each held-out picture whether its neighbours among the learned ones vote for its category, as 0 and 1."""
    train_ND, held_out_QD = (unit(_summaries(encoder, part)) for part in (labelled.train, labelled.held_out))
    label_N = torch.from_numpy(labelled.train.labels)
    right = []
    for part_RD in held_out_QD.split(1024):
        cosine_RK, index_RK = (part_RD @ train_ND.T).topk(min(NEIGHBOURS, len(label_N)), dim=1)
        votes = torch.zeros(len(part_RD), len(labelled.names))
        votes.scatter_add_(1, label_N[index_RK], (cosine_RK / TEMPERATURE).exp())
        right.append(votes.argmax(1))
    return (torch.cat(right).numpy() == labelled.held_out.labels).astype(np.float64)


class AttentiveProbe(nn.Module):
    """A learned query attends to the patches of a frozen encoder, and a linear layer reads the result.

    As AIM is evaluated (El-Nouby et al., arXiv 2401.08541, section 4): features are normalised over the batch, and only
    keys and values are projected.
    """

    def __init__(self, width: int, categories: int, *, heads: int):
        super().__init__()
        self.heads = heads
        # without a momentum: what is used later is the mean over all batches
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6, momentum=None)
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.key, self.value = linear(width, width, bias=False), linear(width, width, bias=False)
        self.output = linear(width, categories, bias=True)

    def forward(self, x_NPE: torch.Tensor) -> torch.Tensor:
        """Logits [N, categories]."""
        x_NPE = self.norm(x_NPE.mT).mT
        query = self.query.expand(len(x_NPE), -1, -1)
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (query, self.key(x_NPE), self.value(x_NPE))
        )
        return self.output(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))


def attentive_probe(encoder: Encoder, labelled: Labelled, *, seed: int) -> np.ndarray:
    """For each held-out picture whether a probe that learned from the others names its category, as 0 and 1."""
    vision = encoder.vision.config
    device = encoder.vision.patch.weight.device
    probe = AttentiveProbe(vision.width, len(labelled.names), heads=vision.heads)
    initialise(probe, seed)
    probe.to(device).train()
    optimizer = torch.optim.AdamW(probe.parameters(), lr=RATE, weight_decay=DECAY)
    patches = _Patches(encoder, labelled.train)
    of_epoch = len(labelled.train) // BATCH or 1
    epochs = max(EPOCHS, math.ceil(STEPS / of_epoch))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * of_epoch)
    for epoch in track(range(epochs), description="probe", transient=True):
        for numbers in _batches(len(labelled.train), seed=seed, epoch=epoch):
            label_N = torch.from_numpy(labelled.train.labels[numbers]).to(device)
            loss = F.cross_entropy(probe(patches.of(numbers).to(device)), label_N)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    probe.eval()
    held_out, named = _Patches(encoder, labelled.held_out), []
    with torch.no_grad():
        for first in range(0, len(labelled.held_out), BATCH):
            numbers = np.arange(first, min(first + BATCH, len(labelled.held_out)))
            named.append(probe(held_out.of(numbers).to(device)).argmax(1).cpu())
    return (torch.cat(named).numpy() == labelled.held_out.labels).astype(np.float64)


class _Patches:
    """Features of the patches of pictures, kept if they are few."""

    def __init__(self, encoder: Encoder, pictures: Pictures):
        self._encoder, self._pictures, self._kept = encoder, pictures, None
        vision = encoder.vision.config
        if len(pictures) * vision.grid.cells * vision.width * 4 <= KEPT_BYTES:
            parts = track(_ranges(len(pictures)), description="features", transient=True)
            self._kept = torch.cat([encoder.patches(pictures.images(part)) for part in parts])

    def of(self, numbers: np.ndarray) -> torch.Tensor:
        """Features [N, P, E] of the pictures of these numbers."""
        if self._kept is not None:
            return self._kept[numbers]
        return self._encoder.patches(self._pictures.images(numbers.tolist()))


def _summaries(encoder: Encoder, pictures: Pictures) -> torch.Tensor:
    parts = track(_ranges(len(pictures)), description="features", transient=True)
    return torch.cat([encoder.summaries(pictures.images(part)) for part in parts])


def _ranges(count: int) -> list[range]:
    return [range(first, min(first + AT_ONCE, count)) for first in range(0, count, AT_ONCE)]


def _batches(count: int, *, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """The pictures of an epoch in batches of `BATCH`, all but the rest; one batch if they are fewer."""
    order = np.random.default_rng((seed, 3, epoch)).permutation(count)
    for first in range(0, max(1, count // BATCH) * BATCH, BATCH):
        yield order[first : first + BATCH]

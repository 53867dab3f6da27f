"""Next-token cross-entropy over trained text."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from mm1.document import IGNORED, Batch
from mm1.model.mllm import MLLM
from mm1.model.moe import Routing
from mm1.objectives.loss import Loss

LOGITS = {"cpu": 2**23, "cuda": 2**27}
"""Logits in memory at once, by device: on a CPU more cost cache, fewer make thin products."""

ALIGNED = 16
"""Places of a chunk are a multiple of this: 64 bytes of float32."""


class NextToken:
    """Cross-entropy of the next token, over trained text only (MM1: image places are no targets)."""

    def __init__(self, model: MLLM, sources: list[str], *, z_loss_weight: float = 0.0):
        """`z_loss_weight` weighs the mean over trained tokens of log(sum of exp(logits)) squared (PaLM, section 5)."""
        self._model, self.sources, self._z_loss_weight = model, sources, z_loss_weight

    def weight(self, batch: Batch) -> int:
        return int((batch.targets_BT != IGNORED).sum())

    def loss(self, batch: Batch) -> Loss:
        hidden_BTD, layers = self._model(batch)
        targets = batch.targets_BT.flatten()
        learned = (targets != IGNORED).nonzero().squeeze(1)
        found = cross_entropy(
            self._model,
            hidden_BTD.flatten(0, 1),
            targets=targets,
            places=learned,
            z_loss_weight=self._z_loss_weight,
            at_once=LOGITS[targets.device.type],
        )
        losses = found.losses
        origin = batch.source_B.repeat_interleave(batch.tokens_BT.shape[1])[learned]
        zeros = torch.zeros(len(self.sources), device=losses.device)
        return Loss(
            total=found.total,
            weight=len(learned),
            by_source=zeros.index_add(0, origin, losses),
            weight_by_source=zeros.index_add(0, origin, torch.ones_like(losses)),
            routing=Routing.of(layers, self._model.config.decoder.sparse, sequences=len(batch.tokens_BT)),
            z=found.z if self._z_loss_weight else None,
        )


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """The loss at each place, their sum, and the z loss times its weight, summed; float32.

    Only the sum has a gradient, which is that of the z loss too: both are minimised together.
    """

    losses: torch.Tensor
    total: torch.Tensor
    z: torch.Tensor


def cross_entropy(
    model: MLLM,
    hidden: torch.Tensor,
    *,
    targets: torch.Tensor,
    places: torch.Tensor,
    at_once: int,
    z_loss_weight: float = 0.0,
) -> CrossEntropy:
    """The loss of the next token at `places`, with about `at_once` logits in memory."""
    rows = F.embedding(places, hidden)  # an index whose backward is deterministic
    make = _CrossEntropy.apply if torch.is_grad_enabled() else _without_gradients
    return CrossEntropy(*make(rows, model.decoder.output_weight(), targets[places], z_loss_weight, at_once))


def _without_gradients(
    x_RD: torch.Tensor, weight_VD: torch.Tensor, target_R: torch.Tensor, z_loss_weight: float, at_once: int
) -> tuple[torch.Tensor, ...]:
    """The fields of `CrossEntropy`, some classes C of all places at a time: few enough logits to stay in a cache."""
    rows, x_RD, target_R = _aligned(x_RD, target_R)
    classes = max(1, at_once // 8 // max(1, len(x_RD)) // ALIGNED) * ALIGNED
    logs, chosen_R = [], torch.zeros_like(target_R, dtype=torch.float32)
    for first, weight_CD in zip(range(0, len(weight_VD), classes), weight_VD.split(classes), strict=True):
        logits_RC = F.linear(x_RD, weight_CD).float()
        here_R = target_R - first
        within_R = (here_R >= 0) & (here_R < len(weight_CD))
        found_R = logits_RC.gather(1, here_R.clamp(0, len(weight_CD) - 1)[:, None])[:, 0]
        chosen_R = torch.where(within_R, found_R, chosen_R)
        logs.append(_log_sum(logits_RC, 1)[0])
    logs_R = torch.stack(logs).logsumexp(0)[:rows]
    losses_R = logs_R - chosen_R[:rows]
    return losses_R, losses_R.sum(), z_loss_weight * logs_R.square().sum()


def _aligned(x_RD: torch.Tensor, target_R: torch.Tensor) -> tuple[int, torch.Tensor, torch.Tensor]:
    """How many places there are, and both with places of zeros behind, up to a multiple of `ALIGNED`.

    Products with odd ends took half as long again; zeros add nothing to the gradient of the output matrix.
    """
    rows = len(x_RD)
    return rows, F.pad(x_RD, (0, 0, 0, -rows % ALIGNED)), F.pad(target_R, (0, -rows % ALIGNED))


def _log_sum(logits: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The logarithm of the sum of exponentials along `axis`, and their parts in it, which take the logits' memory."""
    largest = logits.amax(axis)
    parts = torch.softmax(logits, axis, out=logits)
    # the largest part is at least 1 / V: its logarithm gives the sum's, without a second pass of exp
    return largest - parts.amax(axis).log(), parts


class _CrossEntropy(torch.autograd.Function):
    """The fields of `CrossEntropy`, of hidden states [R, D] of the R trained places and the output matrix [V, D].

    The gradients are made with the losses, while a chunk's logits are there, and the backward pass scales them: logits
    are neither kept nor computed again (Liger Kernel, arXiv 2410.10989). A chunk of P places stands as [V, P]: so the
    three products took a tenth less time on a CPU than as [P, V].
    """

    @staticmethod
    def forward(ctx, x_RD, weight_VD, target_R, z_loss_weight, at_once):
        device = x_RD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_RD.dtype
        ctx.dtypes = x_RD.dtype, weight_VD.dtype
        weight_VD = weight_VD.to(dtype)
        rows, x_RD, target_R = _aligned(x_RD.to(dtype), target_R)
        x_learns, weight_learns = ctx.needs_input_grad[:2]
        grad_x_RD = torch.empty_like(x_RD) if x_learns else None
        # a sum over chunks: in float32, also of bfloat16 products
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if weight_learns else None
        losses_R, logs_R = (x_RD.new_empty(len(x_RD), dtype=torch.float32) for _ in range(2))
        chunk = max(1, at_once // len(weight_VD) // ALIGNED) * ALIGNED
        with torch.autocast(device, enabled=False):
            for first in range(0, len(x_RD), chunk):
                here = slice(first, first + chunk)
                x_PD, target_1P = x_RD[here], target_R[None, here]
                logits_VP = (weight_VD @ x_PD.t()).float()
                chosen_P = logits_VP.gather(0, target_1P)[0]
                logs_P, part_VP = _log_sum(logits_VP, 0)
                losses_R[here], logs_R[here] = logs_P - chosen_P, logs_P
                if z_loss_weight:
                    part_VP *= 1 + 2 * z_loss_weight * logs_P
                grad_VP = part_VP.scatter_(0, target_1P, part_VP.gather(0, target_1P) - 1).to(dtype)
                if grad_x_RD is not None:
                    torch.mm(grad_VP.t(), weight_VD, out=grad_x_RD[here])
                if grad_weight_VD is None:
                    continue
                if dtype == torch.float32:
                    grad_weight_VD.addmm_(grad_VP, x_PD)
                else:
                    grad_weight_VD += grad_VP @ x_PD
        ctx.save_for_backward(None if grad_x_RD is None else grad_x_RD[:rows], grad_weight_VD)
        losses_R, z = losses_R[:rows], z_loss_weight * logs_R[:rows].square().sum()
        ctx.mark_non_differentiable(losses_R, z)
        return losses_R, losses_R.sum(), z

    @staticmethod
    @once_differentiable
    def backward(ctx, _losses, scale, _z):
        grads = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        # in place: they serve once, and a second matrix as large as the output's would cost a pass of memory
        return *(None if grad is None else grad.mul_(scale).to(dtype) for grad, dtype in grads), None, None, None

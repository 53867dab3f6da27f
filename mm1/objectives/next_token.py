"""Next-token cross-entropy over trained text."""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from mm1.config.run import RunConfig
from mm1.document import IGNORED, Batch, trained_positions
from mm1.model.mllm import MLLM
from mm1.model.moe import Routing
from mm1.model.softcap import soft_cap
from mm1.objectives.loss import Loss, ModelPart, Objective, refuse_pixels
from mm1.objectives.weighting import token_weights

LOGITS = {"cpu": 2**23, "cuda": 2**27}
"""Logits in memory at once, by device: on a CPU more of them leave the cache, fewer make thin matrix products."""

ALIGNED = 16
"""The positions of a chunk are a multiple of this: 64 bytes of float32."""


class NextToken(Objective):
    """Cross-entropy of the next token, over trained text only (in MM1 image tokens are no targets)."""

    unit: ClassVar[str] = "token"
    units: ClassVar[str] = "tokens"
    learns: ClassVar[str] = "writes the next token"
    parts: ClassVar[frozenset[ModelPart]] = frozenset({"vision", "connector", "decoder", "logits"})

    model: MLLM

    def __init__(self, model: MLLM, sources: list[str], *, z_loss_weight: float = 0.0, loss_weighting: str = "token"):
        """`z_loss_weight` weighs the mean over trained tokens of log(sum of exp(logits)) squared (PaLM, section 5).

        `loss_weighting` is what a token counts in both means (objectives/weighting.py).
        """
        self.model, self.sources = model, sources
        self._z_loss_weight, self._weighting = z_loss_weight, loss_weighting

    @classmethod
    def check(cls, run: RunConfig) -> None:
        refuse_pixels(run)

    @classmethod
    def build(cls, run: RunConfig, sources: list[str]) -> Self:
        return cls(MLLM(run.model), sources, z_loss_weight=run.z_loss_weight, loss_weighting=run.loss_weighting)

    def weight(self, batch: Batch) -> float:
        if self._weighting == "token":
            return int((batch.targets_BT != IGNORED).sum())
        weight_R = token_weights(batch, trained_positions(batch.targets_BT), kind=self._weighting)
        return float(weight_R.double().sum())

    def loss(self, batch: Batch) -> Loss:
        hidden_BTD, layers = self.model(batch)
        targets = batch.targets_BT.flatten()
        trained = trained_positions(targets) if batch.trained_R is None else batch.trained_R
        # tokens that count alike are counted without waiting for a GPU
        weight_R = None if self._weighting == "token" else token_weights(batch, trained, kind=self._weighting)
        entropy = cross_entropy(
            self.model,
            hidden_BTD.flatten(0, 1),
            targets=targets,
            positions=trained,
            weights=LossWeights(weight_R, self._z_loss_weight),
            at_once=LOGITS[targets.device.type],
        )
        losses = entropy.losses
        source = batch.source_B.repeat_interleave(batch.tokens_BT.shape[1])[trained]
        zeros = torch.zeros(len(self.sources), device=losses.device)
        return Loss(
            total=entropy.total,
            weight=len(trained) if weight_R is None else weight_R.sum(),
            by_source=zeros.index_add(0, source, losses),
            weight_by_source=zeros.index_add(0, source, torch.ones_like(losses)),
            routing=Routing.of(layers, self.model.config.decoder.sparse, sequences=len(batch.tokens_BT)),
            z=entropy.z if self._z_loss_weight else None,
        )


@dataclass(frozen=True, slots=True)
class LossWeights:
    """What each position counts (None: one), and what its z loss counts beside its loss."""

    position_R: torch.Tensor | None = None
    z_loss: float = 0.0


@dataclass(frozen=True, slots=True)
class Output:
    """What bounds the logits (None: nothing), and about how many of them are in memory at once."""

    softcap: float | None
    at_once: int


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """The loss at each position, their weighted sum, and that of the z loss times its weight; all in float32.

    Only the sum has a gradient. It includes that of the z loss: both are minimised together.
    """

    losses: torch.Tensor
    total: torch.Tensor
    z: torch.Tensor


def cross_entropy(
    model: MLLM,
    hidden: torch.Tensor,
    *,
    targets: torch.Tensor,
    positions: torch.Tensor,
    at_once: int,
    weights: LossWeights = LossWeights(),
) -> CrossEntropy:
    """The loss of the next token at `positions` (of the flat batch), with about `at_once` logits in memory."""
    x_RD = F.embedding(positions, hidden)  # an index whose backward is deterministic
    compute = _CrossEntropy.apply if torch.is_grad_enabled() else _without_gradients
    output = Output(model.decoder.config.logit_softcap, at_once)
    return CrossEntropy(*compute(x_RD, model.decoder.output_weight(), targets[positions], weights, output))


def _sums(losses_R: torch.Tensor, log_sum_R: torch.Tensor, weights: LossWeights) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the losses, and that of the z losses times their weight."""
    squares_R = log_sum_R.square()
    if weights.position_R is not None:
        losses_R, squares_R = losses_R * weights.position_R, squares_R * weights.position_R
    return losses_R.sum(), weights.z_loss * squares_R.sum()


def _without_gradients(
    x_RD: torch.Tensor, weight_VD: torch.Tensor, target_R: torch.Tensor, weights: LossWeights, output: Output
) -> tuple[torch.Tensor, ...]:
    """The fields of `CrossEntropy`, for C classes of all positions at a time: few enough logits to stay in a cache."""
    positions, x_RD, target_R = _aligned(x_RD, target_R)
    classes = max(1, output.at_once // 8 // max(1, len(x_RD)) // ALIGNED) * ALIGNED
    log_sums, target_logit_R = [], torch.zeros_like(target_R, dtype=torch.float32)
    for first, weight_CD in zip(range(0, len(weight_VD), classes), weight_VD.split(classes), strict=True):
        logits_RC = soft_cap(F.linear(x_RD, weight_CD).float(), output.softcap)
        class_R = target_R - first
        within_R = (class_R >= 0) & (class_R < len(weight_CD))
        logit_R = logits_RC.gather(1, class_R.clamp(0, len(weight_CD) - 1)[:, None])[:, 0]
        target_logit_R = torch.where(within_R, logit_R, target_logit_R)
        log_sums.append(log_sum_by_softmax(logits_RC, 1)[0])
    log_sum_R = torch.stack(log_sums).logsumexp(0)[:positions]
    losses_R = log_sum_R - target_logit_R[:positions]
    return losses_R, *_sums(losses_R, log_sum_R, weights)


def _aligned(x_RD: torch.Tensor, target_R: torch.Tensor) -> tuple[int, torch.Tensor, torch.Tensor]:
    """How many positions there are, and both tensors padded with zeros to a multiple of `ALIGNED` positions.

    Matrix products of odd sizes took half as long again; zeros add nothing to the gradient of the output matrix.
    """
    positions = len(x_RD)
    return positions, F.pad(x_RD, (0, 0, 0, -positions % ALIGNED)), F.pad(target_R, (0, -positions % ALIGNED))


def log_sum_by_softmax(logits: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The logarithm of the sum of exponentials along `axis`, and the probabilities, which overwrite the logits.

    The faster way along the last axis.
    """
    largest = logits.amax(axis)
    probabilities = torch.softmax(logits, axis, out=logits)
    # the largest probability is at least 1 / V: its logarithm gives the sum's without a second pass of exp
    return largest - probabilities.amax(axis).log(), probabilities


def log_sum_by_parts(logits: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, one pass over the logits after the other.

    On a GPU a softmax along the first axis is two to four blocks of threads in all.
    """
    largest = logits.amax(axis, keepdim=True)
    sums = logits.sub_(largest).exp_().sum(axis, keepdim=True)
    return (largest + sums.log()).squeeze(axis), logits.div_(sums)


class _CrossEntropy(torch.autograd.Function):
    """The fields of `CrossEntropy`, from the hidden states [R, D] of R trained positions and the output matrix [V, D].

    Gradients are computed with the losses, while a chunk's logits exist, and the backward pass only scales them: logits
    are neither kept nor computed again (Liger Kernel, arXiv 2410.10989). A chunk of P positions is stored as [V, P]:
    on a CPU the three products took a tenth less time than as [P, V].
    """

    @staticmethod
    def forward(ctx, x_RD, weight_VD, target_R, weights, output):
        ctx.dtype = dtype = x_RD.dtype  # the weight's too
        positions, x_RD, target_R = _aligned(x_RD, target_R)
        weight_R = weights.position_R
        if weight_R is not None:
            weight_R = F.pad(weight_R, (0, len(x_RD) - positions))
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        grad_x_RD = torch.empty_like(x_RD) if needs_x else None
        # a sum over chunks: in float32, also of bfloat16 products
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        losses_R, log_sum_R = (x_RD.new_empty(len(x_RD), dtype=torch.float32) for _ in range(2))
        chunk = max(1, output.at_once // len(weight_VD) // ALIGNED) * ALIGNED
        # fp32 on a CPU keeps the losses of every earlier run to the last bit; by parts takes some 0.9 of its time there
        is_exact = dtype == torch.float32 and x_RD.device.type == "cpu"
        log_sum = log_sum_by_softmax if is_exact else log_sum_by_parts
        for first in range(0, len(x_RD), chunk):
            here = slice(first, first + chunk)
            x_PD, target_1P = x_RD[here], target_R[None, here]
            logits_VP = soft_cap((weight_VD @ x_PD.t()).float(), output.softcap)
            # the slope of the cap, 1 - tanh ** 2; what comes next overwrites the logits
            slope_VP = None if output.softcap is None else 1 - (logits_VP / output.softcap).square()
            target_logit_P = logits_VP.gather(0, target_1P)[0]
            log_sum_P, grad_VP = log_sum(logits_VP, 0)
            losses_R[here], log_sum_R[here] = log_sum_P - target_logit_P, log_sum_P
            if weights.z_loss:
                grad_VP *= 1 + 2 * weights.z_loss * log_sum_P
            grad_VP = grad_VP.scatter_(0, target_1P, grad_VP.gather(0, target_1P) - 1)
            if weight_R is not None:
                grad_VP *= weight_R[here]
            if slope_VP is not None:
                grad_VP *= slope_VP
            grad_VP = grad_VP.to(dtype)
            if grad_x_RD is not None:
                torch.mm(grad_VP.t(), weight_VD, out=grad_x_RD[here])
            if grad_weight_VD is None:
                continue
            if dtype == torch.float32:
                grad_weight_VD.addmm_(grad_VP, x_PD)
            else:
                grad_weight_VD += grad_VP @ x_PD
        ctx.save_for_backward(None if grad_x_RD is None else grad_x_RD[:positions], grad_weight_VD)
        losses_R = losses_R[:positions]
        total, z = _sums(losses_R, log_sum_R[:positions], weights)
        ctx.mark_non_differentiable(losses_R, z)
        return losses_R, total, z

    @staticmethod
    @once_differentiable
    def backward(ctx, _losses, scale, _z):
        # in place: they serve once, and a second matrix as large as the output's would cost a pass of memory
        grads = (None if grad is None else grad.mul_(scale).to(ctx.dtype) for grad in ctx.saved_tensors)
        return *grads, None, None, None

"""Sparse feed-forwards: each token goes through the top k of many experts, which a router chooses.

GShard (arXiv 2006.16668), ST-MoE (arXiv 2202.08906); top-2 with renormalised weights as in Mixtral
(arXiv 2401.04088) and in AXLearn's `mixture_of_experts.py`, MM1's own library.

Letters beside the project's legend: J are the experts, Z the top k experts of a token, L the sparse layers, A the
assignments of tokens to experts (B x T x Z), sorted by expert where the text says so; I and O the inputs and outputs
of a matrix.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor

from mm1.config.model import DecoderConfig, SparseConfig
from mm1.model.layers import linear


class LayerRouting(NamedTuple):
    """What one sparse layer did: means over the real tokens of each sequence, summed over the sequences."""

    balance: torch.Tensor  # 1 if the experts share the work evenly, up to J if one has it all
    z: torch.Tensor  # the squared logarithm of the router's partition function
    load_J: torch.Tensor  # each expert's share of the assignments


@dataclass(frozen=True, slots=True)
class Routing:
    """What all sparse layers did with some sequences. `penalty` is added to the loss, summed over sequences too."""

    sequences: int
    penalty: torch.Tensor
    balance_L: torch.Tensor
    z_L: torch.Tensor
    load_LJ: torch.Tensor

    @classmethod
    def of(cls, layers: Sequence[LayerRouting], sparse: SparseConfig, *, sequences: int) -> Self | None:
        """The figures of all layers together, or None if no layer is sparse.

        The losses of the layers are summed, as in AXLearn (`_aux_loss` in its `causal_lm.py`).
        """
        if not layers:
            return None
        balance_L, z_L, load_LJ = (torch.stack(figures) for figures in zip(*layers, strict=True))
        penalty = sparse.load_balance_weight * balance_L.sum() + sparse.router_z_weight * z_L.sum()
        return cls(sequences, penalty, balance_L.detach(), z_L.detach(), load_LJ.detach())

    @classmethod
    def sum(cls, parts: Sequence[Self]) -> Self:
        """The figures of all sequences of several micro-batches."""
        whole = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        sequences = sum(whole.pop("sequences"))
        return cls(sequences, **{name: torch.stack(values).sum(0) for name, values in whole.items()})

    def detach(self) -> Self:
        """The same without gradients."""
        return type(self)(self.sequences, self.penalty.detach(), self.balance_L, self.z_L, self.load_LJ)

    def metrics(self) -> dict[str, float]:
        """For the log: both losses, averaged over layers; the load of the busiest expert of all layers, in even
        shares; the fraction of experts without tokens, and of assignments that were dropped."""
        load_LJ = self.load_LJ / self.sequences
        return {
            "experts/balance": float(self.balance_L.mean()) / self.sequences,
            "experts/z": float(self.z_L.mean()) / self.sequences,
            "experts/busiest": float(load_LJ.max()) * load_LJ.shape[1],
            "experts/idle": float((load_LJ == 0).float().mean()),
            "experts/dropped": max(0.0, 1 - float(load_LJ.sum(1).mean())),
        }


class Linears(nn.Module):
    """A matrix for each expert, in one tensor. The input is sorted by expert; `ends_J` is where each expert's ends."""

    def __init__(self, experts: int, inputs: int, outputs: int, *, scale: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs))
        self.initial_scale = scale
        self.uncompiled = _uncompiled()

    def forward(self, x_AI: torch.Tensor, ends_J: torch.Tensor) -> torch.Tensor:
        device = x_AI.device.type
        weight_JOI = (
            self.weight.to_local() if isinstance(self.weight, DTensor) else self.weight
        )  # of this rank's experts
        if device not in ("cpu", "cuda"):
            return looped(x_AI, weight_JOI, ends_J=ends_J)
        if torch.compiler.is_compiling() and x_AI.dtype != torch.bfloat16:  # the only type the compiler supports here
            return self.uncompiled(x_AI, weight_JOI, ends_J=ends_J)
        return grouped(x_AI, weight_JOI, ends_J=ends_J)


def grouped(x_AI: torch.Tensor, weight_JOI: torch.Tensor, *, ends_J: torch.Tensor) -> torch.Tensor:
    """Each input times its expert's matrix, [A, O], in one kernel that never waits for the device."""
    return F.grouped_mm(x_AI, weight_JOI.transpose(1, 2), offs=ends_J)


@cache
def _uncompiled() -> Callable[..., torch.Tensor]:
    """`grouped`, kept out of compiled code. Wrapped at first use: that imports the compiler, which takes a second."""
    return torch.compiler.disable(grouped)


def looped(x_AI: torch.Tensor, weight_JOI: torch.Tensor, *, ends_J: torch.Tensor) -> torch.Tensor:
    """The same, expert by expert, for devices without the kernel."""
    sizes = torch.diff(ends_J, prepend=ends_J.new_zeros(1)).tolist()
    parts = zip(x_AI.split(sizes), weight_JOI.unbind(0), strict=True)
    return torch.cat([F.linear(part_AI, matrix_OI) for part_AI, matrix_OI in parts])


class Experts(nn.Module):
    """A SwiGLU for each expert, [A, D] to [A, D]."""

    def __init__(self, config: DecoderConfig, *, scale: float):
        super().__init__()
        experts = config.sparse.experts
        self.gate = Linears(experts, config.width, config.mlp_width)
        self.up = Linears(experts, config.width, config.mlp_width)
        self.down = Linears(experts, config.mlp_width, config.width, scale=scale)

    def forward(self, x_AD: torch.Tensor, ends_J: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x_AD, ends_J)) * self.up(x_AD, ends_J), ends_J)


@dataclass(frozen=True, slots=True)
class Choice:
    """The experts of every token, best first, and the weight of each in the token's output."""

    expert_BTZ: torch.Tensor
    weight_BTZ: torch.Tensor
    kept_BTZ: torch.Tensor  # false where the expert was full


class Assignment(NamedTuple):
    """The tokens for all experts, and what is needed to bring the experts' outputs back to their tokens."""

    x_AD: torch.Tensor  # sorted by expert
    ends_J: torch.Tensor  # where each expert's tokens end
    back_A: torch.Tensor  # the row of `x_AD` for each assignment, in the order of the tokens
    order_A: torch.Tensor | None  # its inverse; None with a capacity, where rows may be empty
    weight_BTZ: torch.Tensor
    routing: LayerRouting | None


class SparseFeedForward(nn.Module):
    """The weighted sum of each token's experts, [B, T, D], and the figures of the choice if `real_BT` is given.

    `real_BT` is false for padding. Without a capacity no assignment is dropped. With one each sequence is a group of
    GShard's: an expert takes at most `capacity` even shares of its tokens, all first choices before any second one,
    and later ones are dropped. The output for a token then depends on the whole sequence, so text generated with a
    cache may differ.
    """

    def __init__(self, config: DecoderConfig, *, scale: float):
        super().__init__()
        self.sparse = config.sparse
        self.router = linear(config.width, config.sparse.experts, bias=False)
        self.experts = Experts(config, scale=scale)

    def forward(self, x_BTD: torch.Tensor, real_BT: torch.Tensor | None) -> tuple[torch.Tensor, LayerRouting | None]:
        assignment = self.assign(x_BTD, real_BT)
        return self.combine(self.experts(assignment.x_AD, assignment.ends_J), assignment), assignment.routing

    def assign(self, x_BTD: torch.Tensor, real_BT: torch.Tensor | None) -> Assignment:
        """Which tokens go to which expert."""
        # in fp32: logits rounded to bf16 change choices and make training unstable (ST-MoE, section 3.3)
        logits_BTJ = F.linear(x_BTD.float(), self.router.weight.float())
        choice = self._choose(logits_BTJ, real_BT)
        routing = None if real_BT is None else _figures(logits_BTJ, choice, real_BT=real_BT)
        through = self._all if self.sparse.capacity is None else self._within_capacity
        return through(x_BTD, choice, routing)

    def combine(self, y_AD: torch.Tensor, assignment: Assignment) -> torch.Tensor:
        """The output of each token, [B, T, D], from those of its experts, which are sorted by expert."""
        back_A, order_A, weight_BTZ = assignment.back_A, assignment.order_A, assignment.weight_BTZ
        if order_A is None:
            y_AD = F.pad(y_AD, (0, 0, 0, 1)).index_select(0, back_A)
        else:
            y_AD = Permute.apply(y_AD, back_A, order_A, 1)
        return (y_AD.unflatten(0, weight_BTZ.shape) * weight_BTZ[..., None].to(y_AD.dtype)).sum(2)

    def _choose(self, logits_BTJ: torch.Tensor, real_BT: torch.Tensor | None) -> Choice:
        weight_BTZ, expert_BTZ = logits_BTJ.softmax(-1).topk(self.sparse.top_k, dim=-1)
        if self.sparse.normalize:
            weight_BTZ = weight_BTZ / weight_BTZ.sum(-1, keepdim=True)
        kept_BTZ = torch.ones_like(expert_BTZ, dtype=torch.bool)
        if self.sparse.capacity is not None:
            if real_BT is not None:
                kept_BTZ = kept_BTZ & real_BT[..., None]
            queue_BTZ = _queue(expert_BTZ, kept_BTZ, experts=self.sparse.experts)
            kept_BTZ = kept_BTZ & (queue_BTZ < self._tokens_per_expert(expert_BTZ))
        return Choice(expert_BTZ, weight_BTZ, kept_BTZ)

    def _tokens_per_expert(self, expert_BTZ: torch.Tensor) -> int:
        """How many tokens of a sequence an expert takes at most."""
        assert self.sparse.capacity is not None
        return math.ceil(expert_BTZ.shape[1] * self.sparse.capacity / self.sparse.experts)

    def _all(self, x_BTD: torch.Tensor, choice: Choice, routing: LayerRouting | None) -> Assignment:
        """Every token to all of its experts."""
        expert_A = choice.expert_BTZ.flatten()
        sorted_A, order_A = expert_A.sort(stable=True)
        back_A = torch.empty_like(order_A).scatter_(0, order_A, torch.arange(len(order_A), device=order_A.device))
        ends_J = torch.searchsorted(sorted_A, torch.arange(self.sparse.experts, device=expert_A.device), right=True)
        x_AD = Permute.apply(x_BTD.flatten(0, 1), order_A, back_A, self.sparse.top_k)
        return Assignment(x_AD, ends_J.to(torch.int32), back_A, order_A, choice.weight_BTZ, routing)

    def _within_capacity(self, x_BTD: torch.Tensor, choice: Choice, routing: LayerRouting | None) -> Assignment:
        """The same without what was dropped, whose row is one past the end. The work is the same for any choice."""
        sequences, length, _ = x_BTD.shape
        limit, experts = self._tokens_per_expert(choice.expert_BTZ), self.sparse.experts
        rank_BTZ = _queue(choice.expert_BTZ, choice.kept_BTZ, experts=experts)
        sequence_B11 = torch.arange(sequences, device=x_BTD.device)[:, None, None]
        slot_BTZ = (choice.expert_BTZ * sequences + sequence_B11) * limit + rank_BTZ
        none = experts * sequences * limit  # one more slot, for all that is dropped
        slot_A = slot_BTZ.where(choice.kept_BTZ, none).flatten()
        token_A = torch.arange(len(slot_A), device=x_BTD.device) // self.sparse.top_k
        token_of_slot = torch.full((none + 1,), sequences * length, device=x_BTD.device).scatter_(0, slot_A, token_A)
        x_SD = F.pad(x_BTD.flatten(0, 1), (0, 0, 0, 1)).index_select(0, token_of_slot[:-1])
        ends_J = torch.arange(1, experts + 1, device=x_BTD.device, dtype=torch.int32) * (sequences * limit)
        return Assignment(x_SD, ends_J, slot_A, None, choice.weight_BTZ, routing)


class Permute(torch.autograd.Function):
    """The rows of `x`, each `copies` times, in the order `order_A`; the gradient goes back by `back_A`.

    Both directions only gather. So the backward is deterministic and as fast as the forward, where indexing's own
    backward is a scatter that accumulates.
    """

    @staticmethod
    def forward(ctx, x, order_A, back_A, copies):
        ctx.save_for_backward(back_A)
        ctx.copies = copies
        return x.index_select(0, order_A // copies)

    @staticmethod
    def backward(ctx, grad):
        (back_A,) = ctx.saved_tensors
        return grad.index_select(0, back_A).unflatten(0, (-1, ctx.copies)).sum(1), None, None, None


def _queue(expert_BTZ: torch.Tensor, waiting_BTZ: torch.Tensor, *, experts: int) -> torch.Tensor:
    """How many waiting assignments of the sequence are before each in its expert's queue: first choices come first."""
    expert_BQ = expert_BTZ.transpose(1, 2).flatten(1)
    waits_BQJ = F.one_hot(expert_BQ, experts) * waiting_BTZ.transpose(1, 2).flatten(1)[..., None]
    before_BQ = (waits_BQJ.cumsum(1) - waits_BQJ).gather(2, expert_BQ[..., None])[..., 0]
    return before_BQ.unflatten(1, (expert_BTZ.shape[2], -1)).transpose(1, 2)


def _figures(logits_BTJ: torch.Tensor, choice: Choice, *, real_BT: torch.Tensor) -> LayerRouting:
    """AXLearn's losses, with each sequence a group, so that accumulation and world size don't change them.

    Balance is J x the sum over experts of (fraction of tokens that choose it first) x (mean probability).
    """
    experts = logits_BTJ.shape[-1]
    real_BT1 = real_BT[..., None].to(logits_BTJ.dtype)
    tokens_B1 = real_BT1.sum(1).clamp(min=1)
    chosen_BTZJ = choice.expert_BTZ[..., None] == torch.arange(experts, device=logits_BTJ.device)
    first_BJ = (chosen_BTZJ[:, :, 0] * real_BT1).sum(1) / tokens_B1
    mean_BJ = (logits_BTJ.softmax(-1) * real_BT1).sum(1) / tokens_B1
    z_B = (logits_BTJ.logsumexp(-1).square() * real_BT1[..., 0]).sum(1) / tokens_B1[:, 0]
    done_BTZ = (choice.kept_BTZ & real_BT[..., None]).to(logits_BTJ.dtype)
    # a sum, not a scatter: deterministic on a GPU
    load_BJ = (chosen_BTZJ * done_BTZ[..., None]).sum((1, 2)) / (tokens_B1 * done_BTZ.shape[2])
    return LayerRouting(experts * (first_BJ * mean_BJ).sum(), z_B.sum(), load_BJ.sum(0))


def upcycled(dense: dict[str, torch.Tensor], sparse: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of a sparse model that computes what the dense one does: every expert is its feed-forward.

    Routers keep their values of `sparse`. The weights of a token's experts add up to one, so the router's choice makes
    no difference at first (sparse upcycling, arXiv 2212.05055).

    Raises:
        ValueError: the dense model lacks a tensor or has it in another shape.
    """
    state = {}
    for name, value in sparse.items():
        origin = name.replace(".feed_forward.experts.", ".feed_forward.")
        if ".feed_forward.router." in name:
            state[name] = value
        elif origin in dense and dense[origin].shape == value.shape[value.ndim - dense[origin].ndim :]:
            state[name] = dense[origin].expand(value.shape)
        else:
            shape = tuple(dense[origin].shape) if origin in dense else "nothing"
            raise ValueError(
                f"{name} of shape {tuple(value.shape)} can't be upcycled: {origin} is {shape} in the dense "
                "model; give both the same model.* fields, except model.decoder.sparse"
            )
    return state

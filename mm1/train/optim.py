"""The optimizers and their parameter groups. What each does and why: docs/optimizer.md."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from mm1.config.run import OptimConfig
from mm1.train import parameters as parts

MOMENTUM = 0.95
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x^3 and x^5; iterated, they bring singular values near 1
(https://kellerjordan.github.io/posts/muon/)."""

STACKED = 2**21
"""Values of the matrices that are made orthogonal together, at most."""


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer of two: Muon for the groups with `orthogonal`, AdamW for the others.

    Both work on the groups and the state of this one, so a checkpoint holds a single optimizer.
    """

    def __init__(self, groups: list[dict], optim: OptimConfig, *, peak: float):
        self._optimizers = {
            orthogonal: build(own, optim, peak=peak)
            for orthogonal, build in ((True, Muon), (False, _adamw))
            if (own := [group for group in groups if group["orthogonal"] == orthogonal])
        }
        super().__init__([group for optimizer in self._optimizers.values() for group in optimizer.param_groups], {})

    @torch.no_grad()
    def step(self, closure=None):
        for orthogonal, optimizer in self._optimizers.items():
            # at every step: loading a checkpoint replaces the groups and the state
            optimizer.param_groups = [group for group in self.param_groups if group["orthogonal"] == orthogonal]
            optimizer.state = self.state
            optimizer.step(closure)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, for matrices.

    Updates have the size of AdamW's, so one learning rate fits both (arXiv 2502.16982). torch's own iterates in
    bfloat16 on every device: on a CPU without bfloat16 units, a step of 9 M parameters took 25 seconds instead of 0.8.
    """

    def __init__(self, groups: list[dict], optim: OptimConfig, *, peak: float):
        super().__init__(groups, {"lr": peak, "weight_decay": optim.weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameters in _stacks([parameter for parameter in group["params"] if parameter.grad is not None]):
                directions = [self._direction(parameter) for parameter in parameters]
                if len(parameters) > 1:
                    updates = list(_orthogonal(torch.stack(directions)))
                else:
                    updates = [_orthogonal(directions[0])]
                for parameter, update in zip(parameters, updates, strict=True):
                    size = 0.2 * max(parameter.shape) ** 0.5
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-group["lr"] * size)

    def _direction(self, parameter: torch.Tensor) -> torch.Tensor:
        """The gradient with Nesterov momentum."""
        assert parameter.grad is not None
        momentum = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        momentum.lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp(momentum, MOMENTUM)


def _stacks(parameters: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The matrices that are made orthogonal together: of one shape, at most `STACKED` values, and not sharded.

    Fifty small matrices one by one are mostly waiting: each product is too short for two threads.
    """
    of_shapes: dict[torch.Size, list[torch.Tensor]] = {}
    for parameter in parameters:
        if isinstance(parameter, DTensor):
            yield [parameter]
        else:
            of_shapes.setdefault(parameter.shape, []).append(parameter)
    for shape, alike in of_shapes.items():
        most = max(1, STACKED // shape.numel())
        yield from (alike[first : first + most] for first in range(0, len(alike), most))


def _orthogonal(gradient: torch.Tensor) -> torch.Tensor:
    """About the nearest matrix with orthonormal rows (columns, if they are fewer), by five steps of Newton-Schulz.

    A stack of matrices comes out as the stack of theirs.
    """
    x = gradient.bfloat16() if gradient.device.type == "cuda" else gradient
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = QUINTIC[0] * x + (QUINTIC[1] * gram + QUINTIC[2] * (gram @ gram)) @ x
    return x.mT if tall else x


class Adafactor(torch.optim.Optimizer):
    """Adafactor without first moment (arXiv 1804.04235, algorithms 4 and 5), with an absolute learning rate.

    torch's own scales steps by the parameter's RMS, and can't compute on sharded parameters (torch 2.13).
    """

    def __init__(self, groups: list[dict], *, lr: float):
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._update(parameter.grad, self.state[parameter])
                    size = (parts.full_tensor(update.square().sum()) / update.numel()).sqrt()
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(update * (group["lr"] / size.clamp(min=1.0)))

    def _update(self, gradient: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
        """The gradient over the root of its second moment; that of a matrix (the last two axes) is factored."""
        squares = gradient.square() + 1e-30
        step = state.setdefault("step", torch.zeros(()))
        step += 1
        new = float(step) ** -0.8  # weight of this step's squares: 1 at the first step
        if gradient.ndim < 2:
            return gradient * _mean(state, "all", squares=squares, new=new).rsqrt()
        rows = _mean(state, "rows", squares=parts.reduced(squares.sum(-1)), new=new)
        columns = _mean(state, "columns", squares=parts.reduced(squares.sum(-2)), new=new)
        share = rows / parts.reduced(rows.sum(-1, keepdim=True))
        return gradient * share.rsqrt()[..., None] * columns.rsqrt()[..., None, :]


def _mean(state: dict[str, torch.Tensor], name: str, *, squares: torch.Tensor, new: float) -> torch.Tensor:
    return state.setdefault(name, torch.zeros_like(squares)).lerp_(squares, new)


def _adamw(groups: list[dict], optim: OptimConfig, *, peak: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=peak, betas=optim.betas, eps=optim.epsilon, fused=True)


def _adafactor(groups: list[dict], optim: OptimConfig, *, peak: float) -> torch.optim.Optimizer:
    return Adafactor(groups, lr=peak)


def _muon(groups: list[dict], optim: OptimConfig, *, peak: float) -> torch.optim.Optimizer:
    return MuonAdamW(groups, optim, peak=peak)


KINDS = {"adamw": _adamw, "adafactor": _adafactor, "muon": _muon}


def build(model: nn.Module, optim: OptimConfig, *, peak: float) -> torch.optim.Optimizer:
    """The optimizer of a model's trained parameters. Only matrices decay: no norms, biases or single vectors.

    Every group has the `multiplier` of its learning rate: the last of `optim.lr_multipliers` that matches.

    Raises:
        ConfigError: a multiplier's pattern matches no parameter of the model.
    """
    names = [name for name, _ in model.named_parameters()]
    multiplier = dict.fromkeys(names, 1.0)
    for pattern, value in optim.lr_multipliers.items():
        multiplier |= dict.fromkeys(parts.require_matching(pattern, names, field="optim.lr_multipliers"), value)
    groups: dict[tuple, list[nn.Parameter]] = {}
    for name, parameter in parts.trained(model).items():
        orthogonal = optim.kind == "muon" and _is_hidden_matrix(name, parameter)
        groups.setdefault((multiplier[name], parameter.ndim >= 2, orthogonal), []).append(parameter)
    param_groups = [
        {
            "params": groups[key],
            "weight_decay": optim.weight_decay if key[1] else 0.0,
            "multiplier": key[0],
            "orthogonal": key[2],
        }
        for key in sorted(groups, reverse=True)
    ]
    return KINDS[optim.kind](param_groups, optim, peak=peak)


def _is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon takes the parameter: a matrix between hidden states; no embedding, output matrix or router.

    Muon is for matrices of two axes, so stacked experts are left to AdamW.
    """
    last = name.split(".")[-2:]
    outer = {"embedding", "output", "patch", "router", "image_projection", "text_projection"}
    return parameter.ndim == 2 and last[-1] == "weight" and last[0] not in outer

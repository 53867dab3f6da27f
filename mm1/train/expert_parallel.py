"""Experts on several ranks: each has some of them whole, and places go to where their experts are and come back."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed._functional_collectives import all_to_all_single, all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle

from mm1.model.moe import Permute


@dataclass(frozen=True, slots=True)
class _Way:
    """How places came to this rank: how many it sent to and got from each, and their order by expert and back."""

    sent: list[int]
    got: list[int]
    order_A: torch.Tensor
    back_A: torch.Tensor


class DealtExperts(ParallelStyle):
    """For `moe.Experts`: rank r of the mesh computes the r-th part of the experts, for the places of all its ranks.

    What goes in and what comes out is as with all experts here: places sorted by expert, and where each one's end.
    """

    def __init__(self) -> None:
        self._way: _Way | None = None

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        # its annotations know nothing of what the functions return, which it uses
        return distribute_module(module, device_mesh, self._cut, self._go, self._return)  # type: ignore[arg-type]

    def _cut(self, name: str, module: nn.Module, mesh: DeviceMesh) -> None:
        for leaf, weight in list(module.named_parameters(recurse=False)):
            cut = distribute_tensor(weight, mesh, [Shard(0)], src_data_rank=None)
            module.register_parameter(leaf, nn.Parameter(cut, requires_grad=weight.requires_grad))

    def _go(self, module: nn.Module, inputs: tuple, mesh: DeviceMesh) -> tuple[torch.Tensor, torch.Tensor]:
        x_AD, ends_J = inputs
        ranks, group = mesh.size(), mesh.get_group()
        counts_J = torch.diff(ends_J, prepend=ends_J.new_zeros(1)).to(torch.int64)
        # of each rank, for each expert here, how many places come
        got_J = all_to_all_single(counts_J, None, None, group).view(ranks, -1)
        sent, got = counts_J.view(ranks, -1).sum(1).tolist(), got_J.sum(1).tolist()
        x_AD = all_to_all_single_autograd(x_AD, got, sent, group)
        expert_A = torch.arange(got_J.shape[1], device=x_AD.device).repeat(ranks).repeat_interleave(got_J.flatten())
        order_A = expert_A.argsort(stable=True)
        back_A = torch.empty_like(order_A).scatter_(0, order_A, torch.arange(len(order_A), device=x_AD.device))
        self._way = _Way(sent, got, order_A, back_A)
        return Permute.apply(x_AD, order_A, back_A, 1), got_J.sum(0).cumsum(0).to(torch.int32)

    def _return(self, module: nn.Module, outputs: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
        way, self._way = self._way, None
        assert way is not None
        x_AD = Permute.apply(outputs, way.back_A, way.order_A, 1)
        return all_to_all_single_autograd(x_AD, way.sent, way.got, mesh.get_group())

"""Expert parallelism: each rank has some experts whole; tokens are sent to the ranks of their experts and back.

How many tokens go where is known on the device only, after the router, but both NCCL and gloo want the numbers from the
host. So the host waits once in the forward pass of each sparse layer, for one small copy of all numbers; the backward
pass waits for nothing. Exchanges of a fixed size would wait for nothing at all, but without a capacity every rank must
then have room for all tokens of all ranks, and sends and computes as many: `ep` times the traffic. An exchange that
reads its sizes on the device needs NVSHMEM.

The wait can't be compiled. So a layer with distributed experts is compiled in pieces around the exchange
(`compilation.py`).
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed._functional_collectives import all_to_all_single, all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle

from mm1.model.moe import Permute


@dataclass(frozen=True, slots=True)
class _Exchange:
    """What combining needs to know of a dispatch: tokens sent to and received from each rank, and their order."""

    sent: list[int]
    received: list[int]
    order_A: torch.Tensor  # that sorts the received tokens by expert
    back_A: torch.Tensor  # its inverse


class ExpertParallel(ParallelStyle):
    """For `moe.Experts`: rank r of the mesh computes the r-th part of the experts, for the tokens of all its ranks.

    Inputs and outputs are those of `moe.Experts` with all experts here: tokens sorted by expert, and the end of each
    expert's tokens.
    """

    def __init__(self) -> None:
        self._exchange: _Exchange | None = None

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        # its annotations don't know that it uses what the functions return
        return distribute_module(module, device_mesh, self._partition, self._dispatch, self._combine)  # type: ignore[arg-type]

    def _partition(self, name: str, module: nn.Module, mesh: DeviceMesh) -> None:
        for leaf, weight in list(module.named_parameters(recurse=False)):
            sharded = distribute_tensor(weight, mesh, [Shard(0)], src_data_rank=None)
            module.register_parameter(leaf, nn.Parameter(sharded, requires_grad=weight.requires_grad))

    def _dispatch(self, module: nn.Module, inputs: tuple, mesh: DeviceMesh) -> tuple[torch.Tensor, torch.Tensor]:
        x_AD, ends_J = inputs
        ranks, group = mesh.size(), mesh.get_group()
        counts_J = torch.diff(ends_J, prepend=ends_J.new_zeros(1)).to(torch.int64)
        # how many tokens come from each rank for each of the experts here
        received_J = all_to_all_single(counts_J, None, None, group).view(ranks, -1)
        sent, received = torch.stack((counts_J.view(ranks, -1).sum(1), received_J.sum(1))).tolist()
        x_AD = all_to_all_single_autograd(x_AD, received, sent, group)
        experts = torch.arange(received_J.shape[1], device=x_AD.device)
        # the size is given, or the host would wait for it again
        expert_A = experts.repeat(ranks).repeat_interleave(received_J.flatten(), output_size=sum(received))
        order_A = expert_A.argsort(stable=True)
        back_A = torch.empty_like(order_A).scatter_(0, order_A, torch.arange(len(order_A), device=x_AD.device))
        self._exchange = _Exchange(sent, received, order_A, back_A)
        return Permute.apply(x_AD, order_A, back_A, 1), received_J.sum(0).cumsum(0).to(torch.int32)

    def _combine(self, module: nn.Module, outputs: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
        exchange, self._exchange = self._exchange, None
        assert exchange is not None
        x_AD = Permute.apply(outputs, exchange.back_A, exchange.order_A, 1)
        return all_to_all_single_autograd(x_AD, exchange.sent, exchange.received, mesh.get_group())

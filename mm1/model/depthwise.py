"""A depthwise convolution that compiled code calls as a whole.

Left to look inside, the compiler took the number of images as a constant on an H200 (torch 2.11), since that may decide
which kernel convolves. So it compiled for each number anew, and gave up after eight.
"""

from typing import Any

import torch
import torch.nn.functional as F


def depthwise(x_NYXC: torch.Tensor, weight_C1HW: torch.Tensor) -> torch.Tensor:
    """Each channel convolved by itself, with zeros around the image: [N, Y, X, C] again. H and W are odd."""
    if torch.compiler.is_compiling():
        return _as_a_whole(x_NYXC, weight_C1HW)
    return _convolve(x_NYXC, weight_C1HW)


def _convolve(x_NYXC: torch.Tensor, weight_C1HW: torch.Tensor) -> torch.Tensor:
    x_NCYX = x_NYXC.permute(0, 3, 1, 2)
    y_NCYX = F.conv2d(x_NCYX, weight_C1HW, padding=_padding(weight_C1HW), groups=len(weight_C1HW))
    return y_NCYX.permute(0, 2, 3, 1)


def _padding(weight_C1HW: torch.Tensor) -> list[int]:
    return [pixels // 2 for pixels in weight_C1HW.shape[2:]]


@torch.library.custom_op("mm1::depthwise", mutates_args=())
def _as_a_whole(x_NYXC: torch.Tensor, weight_C1HW: torch.Tensor) -> torch.Tensor:
    return _convolve(x_NYXC, weight_C1HW).contiguous()


@torch.library.custom_op("mm1::depthwise_backward", mutates_args=())
def _backward(
    gradient_NYXC: torch.Tensor, x_NYXC: torch.Tensor, weight_C1HW: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    of_x_NCYX, of_weight_C1HW, _ = torch.ops.aten.convolution_backward(
        gradient_NYXC.permute(0, 3, 1, 2),
        x_NYXC.permute(0, 3, 1, 2),
        weight_C1HW,
        bias_sizes=None,
        stride=[1, 1],
        padding=_padding(weight_C1HW),
        dilation=[1, 1],
        transposed=False,
        output_padding=[0, 0],
        groups=len(weight_C1HW),
        output_mask=[True, True, False],
    )
    return of_x_NCYX.permute(0, 2, 3, 1).contiguous(), of_weight_C1HW.contiguous()


@_as_a_whole.register_fake
def _(x_NYXC: torch.Tensor, weight_C1HW: torch.Tensor) -> torch.Tensor:
    return x_NYXC.new_empty(x_NYXC.shape)


@_backward.register_fake
def _(
    gradient_NYXC: torch.Tensor, x_NYXC: torch.Tensor, weight_C1HW: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return x_NYXC.new_empty(x_NYXC.shape), weight_C1HW.new_empty(weight_C1HW.shape)


def _keep_inputs(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, gradient_NYXC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _backward(gradient_NYXC, *ctx.saved_tensors)


_as_a_whole.register_autograd(_gradients, setup_context=_keep_inputs)

"""Rotary positions (Su et al., arXiv 2104.09864), and how models stretch them to longer sequences.

The module needs torch alone: an export with a modelling file holds it too.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F


def rotary_angles(
    position_BT: torch.Tensor, config: Any, window: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and signed sine for `rotate`, [B, T, 1, W] in fp32; compute them once for all layers of a `window`.

    `config` has the fields of a `DecoderConfig`. W are the channels of a head that are rotated.
    """
    width, own = round(config.head_width * config.rotary_share), window is not None and config.window_rope_base
    channel_W = torch.arange(0, width, 2, device=position_BT.device, dtype=torch.float32)
    frequency_W = 1 / (own or config.rope_base) ** (channel_W / width)  # radians per position
    scaling, size = config.rope_scaling, 1.0
    if scaling is not None and not own:
        frequency_W, size = SCALINGS[scaling.kind](frequency_W, config, scaling), scaling.attention_factor
    angle_BT1W = (position_BT[..., None].float() * frequency_W)[:, :, None]
    cos, sin = angle_BT1W.cos() * size, angle_BT1W.sin() * size
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def patch_angles(
    grid: tuple[int, int], *, width: int, base: float, before: int, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for the patches of an image and `before` tokens before them, which stay unrotated: [Q, W].

    Half of a head's pairs turn with the row, half with the column. Both go from -1 to 1 over the image, whatever the
    `grid` of rows and columns (DINOv3; Siméoni et al., arXiv 2508.10104). `like` is on the device.
    """
    frequency_C = 2 * math.pi * base ** -(torch.arange(width // 4, device=like.device) * 4 / width)
    rows, columns = (torch.arange(0.5, count, device=like.device) / count * 2 - 1 for count in grid)
    angle_PW = (torch.cartesian_prod(rows, columns)[..., None] * frequency_C).flatten(1)
    angle_QW = F.pad(angle_PW, (0, 0, before, 0))
    cos, sin = angle_QW.cos(), angle_QW.sin()
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def rotate(x_BTHW: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """`x_BTHW` rotated by position; channel i of a head's first half pairs with i of its second, as in transformers.

    Of fewer angles than channels only the first channels are rotated.
    """
    cos, sin = angles
    if cos.shape[-1] < x_BTHW.shape[-1]:
        first, rest = x_BTHW.split((cos.shape[-1], x_BTHW.shape[-1] - cos.shape[-1]), -1)
        return torch.cat((rotate(first, angles), rest), -1)
    # rolling by half a head swaps the halves: a third faster on a CPU than splitting and concatenating
    return (x_BTHW * cos + x_BTHW.roll(x_BTHW.shape[-1] // 2, -1) * sin).to(x_BTHW.dtype)


def _linear(frequency_W: torch.Tensor, config: Any, scaling: Any) -> torch.Tensor:
    """Positions divided by the factor (Chen et al., arXiv 2306.15595)."""
    return frequency_W / scaling.factor


def _llama3(frequency_W: torch.Tensor, config: Any, scaling: Any) -> torch.Tensor:
    """Llama 3.1: fast rotations stay, slow ones become slower by the factor, those between change gradually."""
    turns_W = scaling.original_positions * frequency_W / (2 * torch.pi)
    kept_W = ((turns_W - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return frequency_W * (kept_W + (1 - kept_W) / scaling.factor)


def _yarn(frequency_W: torch.Tensor, config: Any, scaling: Any) -> torch.Tensor:
    """YaRN (Peng et al., arXiv 2309.00071): between the channels that turn `high` and `low` times in a sequence of the
    original length, rounded outwards to whole channels, the factor sets in gradually."""
    width, base = config.head_width, config.rope_base

    def channel(turns: float) -> float:
        return width * math.log(scaling.original_positions / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = channel(scaling.high), channel(scaling.low)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    step = torch.arange(len(frequency_W), device=frequency_W.device, dtype=torch.float32)
    scaled_W = ((step - first) / (last - first or 0.001)).clamp(0, 1)
    return frequency_W / scaling.factor * scaled_W + frequency_W * (1 - scaled_W)


def _longrope(frequency_W: torch.Tensor, config: Any, scaling: Any) -> torch.Tensor:
    """A factor for each pair of channels (LongRoPE, arXiv 2402.13753)."""
    return frequency_W / torch.tensor(scaling.factors, device=frequency_W.device)


SCALINGS = {"longrope": _longrope, "linear": _linear, "llama3": _llama3, "yarn": _yarn}

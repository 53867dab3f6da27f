"""The one convolutional image encoder: EfficientNet-Lite0, because its real weights come in a package.

Tan and Le, arXiv 1905.11946; Lite leaves out squeeze-and-excitation and has ReLU6 (github.com/tensorflow/tpu,
models/official/efficientnet/lite).
"""

import torch
import torch.nn.functional as F
from torch import nn

from mm1.config.model import VisionConfig
from mm1.model.vision import Vision, normalise

STAGES = (  # blocks, kernel, stride of the first, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM = 32  # channels


class StaticNorm(nn.BatchNorm2d):
    """A batch norm with the statistics it came with, in training too: a micro-batch holds few images, or none."""

    def forward(self, x_NCYX: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x_NCYX, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class Convolution(nn.Module):
    """A convolution with TensorFlow's SAME padding, which is uneven for strides, and its norm."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = StaticNorm(outputs, eps=1e-3)

    def forward(self, x_NCYX: torch.Tensor) -> torch.Tensor:
        size, (kernel, stride) = x_NCYX.shape[-1], (self.convolution.kernel_size[0], self.convolution.stride[0])
        missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        padded_NCYX = F.pad(x_NCYX, (missing // 2, missing - missing // 2) * 2)
        return self.norm(self.convolution(padded_NCYX))


class MobileBlock(nn.Module):
    """Widen, convolve each channel alone, narrow: MobileNetV2's block (Sandler et al., arXiv 1801.04381)."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        self.expand = Convolution(inputs, inner, kernel=1) if expansion > 1 else None
        self.depthwise = Convolution(inner, inner, kernel=kernel, stride=stride, groups=inner)
        self.project = Convolution(inner, outputs, kernel=1)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x_NCYX: torch.Tensor) -> torch.Tensor:
        y_NCYX = x_NCYX if self.expand is None else F.relu6(self.expand(x_NCYX))
        y_NCYX = self.project(F.relu6(self.depthwise(y_NCYX)))
        return x_NCYX + y_NCYX if self.adds else y_NCYX


class EfficientNetLite0(nn.Module):
    """Features of cells of 32 x 32 pixels, in the place of a ViT's patches: 7 x 7 of a 224-pixel image."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.stem = Convolution(3, STEM, kernel=3, stride=2)
        self.blocks = nn.ModuleList()
        channels = STEM
        for repeats, kernel, stride, expansion, outputs in STAGES:
            for index in range(repeats):
                step = stride if index == 0 else 1
                self.blocks.append(MobileBlock(channels, outputs, kernel=kernel, stride=step, expansion=expansion))
                channels = outputs
        self.head = Convolution(channels, config.width, kernel=1)

    def forward(self, images_NCYX: torch.Tensor) -> torch.Tensor:
        """Features [N, P, E], row by row."""
        x_NCYX = normalise(images_NCYX, self.config).to(self.stem.convolution.weight.dtype)
        x_NCYX = F.relu6(self.stem(x_NCYX))
        for block in self.blocks:
            x_NCYX = block(x_NCYX)
        return F.relu6(self.head(x_NCYX)).flatten(2).mT

    def summary(self, images_NCYX: torch.Tensor) -> torch.Tensor:
        """One feature an image, [N, E]: the mean of the cells, which its classifier reads."""
        return self(images_NCYX).mean(1)

    def idle(self) -> list[nn.Parameter]:
        """No parameter: `forward` uses all."""
        return []


KINDS: dict[str, type[Vision | EfficientNetLite0]] = {"vit": Vision, "efficientnet_lite0": EfficientNetLite0}

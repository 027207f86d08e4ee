"""The parts that every residual net of this package shares.

Rules of this file: a block takes one tensor and returns one tensor, because adaptors join around
blocks. Submodules have torchvision's names (``conv1``, ``bn1``, ``layer1.0.conv1``,
``downsample.0``, ``fc``), so that checkpoints travel. Nothing works in place, because an adaptor
reads its block's input again. It knows no particular net and loads no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

BlockFactory = Callable[[int, int, int], nn.Module]
"""Builds a block from (input channels, width, stride)."""


@dataclass(frozen=True, slots=True)
class Stage:
    """``depth`` blocks of one ``width`` in a row; the first one has the ``stride``."""

    depth: int
    width: int
    stride: int


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a bias-free convolution that keeps the map's size at stride 1."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def projection(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """Return the 1x1 shortcut of He et al. 2015 (option B), or None where the shape stays."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class PoolAndPad(nn.Module):
    """Shortcut without parameters: average-pool by ``stride``, new channels are zero."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.extra = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C + extra, H / stride, W / stride]."""
        # torch pads the last dimension first; the third pair is that of the channels.
        return F.pad(F.avg_pool2d(x, self.stride), (0, 0, 0, 0, 0, self.extra))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2015, section 3)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [N, inputs, H, W] to [N, width, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        # No activation before the sum: the branch may subtract from the shortcut.
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu(y + shortcut)
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with the stride on the 3x3: the "v1.5" that torchvision trains."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [N, inputs, H, W] to [N, 4 * width, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        out: Tensor = self.relu(y + shortcut)
        return out


class ResidualNet(nn.Module):
    """Stem, stages ``layer1``, ``layer2``, ..., global average pool, and the classifier ``fc``."""

    def __init__(
        self,
        conv1: nn.Conv2d,
        stages: Sequence[Stage],
        block: BlockFactory,
        *,
        expansion: int,
        classes: int,
        maxpool: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = conv1
        self.bn1 = nn.BatchNorm2d(conv1.out_channels)
        self.relu = nn.ReLU()
        self.maxpool = maxpool
        self.stages = tuple(f"layer{index}" for index in range(1, len(stages) + 1))
        # add_module() and not one Sequential: torchvision's names are layer1, layer2, ...
        channels = conv1.out_channels
        for name, stage in zip(self.stages, stages, strict=True):
            blocks = []
            for index in range(stage.depth):
                blocks.append(block(channels, stage.width, stage.stride if index == 0 else 1))
                channels = stage.width * expansion
            self.add_module(name, nn.Sequential(*blocks))
        # Pooling to one pixel lets pictures have any size.
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised float32 [N, 3, H, W] to logits [N, classes]."""
        x = self.relu(self.bn1(self.conv1(x)))
        if self.maxpool is not None:
            x = self.maxpool(x)
        for name in self.stages:
            x = getattr(self, name)(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _initialise(net: nn.Module) -> None:
    """Draw convolutions as He et al. 2015b (fan-out, ReLU); norms start as the identity."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

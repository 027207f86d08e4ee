"""ResNet-26 of the Visual Decathlon (Rebuffi et al., arXiv 1705.08045 and 1803.10082).

A 3x3 stem with 32 channels, then three macro blocks of four residual blocks with 64, 128 and 256
channels. Each macro block halves the map. Pictures have 72 pixels, cropped to 64. The shortcut of a
macro block's first block averages 2x2 and pads the new channels with zeros: it has no parameters.
The papers' residual adapters are methods here (``series``, ``parallel``), no part of the backbone.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .residual import BasicBlock, PoolAndPad, ResidualNet, Stage, conv

STAGES = (Stage(4, 64, 2), Stage(4, 128, 2), Stage(4, 256, 2))


def _block(inputs: int, width: int, stride: int) -> nn.Module:
    changes = stride != 1 or inputs != width
    return BasicBlock(inputs, width, stride, PoolAndPad(inputs, width, stride) if changes else None)


def build(classes: int, stages: Sequence[Stage] = STAGES) -> ResidualNet:
    """Return the untrained net: normalised float32 [N, 3, 64, 64] to logits [N, ``classes``].

    Other ``stages`` make a net of the same operators in another size.
    """
    return ResidualNet(conv(3, 32, 3), stages, _block, expansion=1, classes=classes)

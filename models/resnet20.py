"""ResNet-20 for 32-pixel pictures (He et al. 2015, section 4.2).

Three stages of three basic blocks with 16, 32 and 64 channels. One thing differs from the paper:
where the shape changes, the shortcut is a 1x1 convolution with its norm (the paper's option B), not
zero padding. This file holds the architecture only; ``pretrain`` made the shipped weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .residual import BasicBlock, ResidualNet, Stage, conv, projection

STAGES = (Stage(3, 16, 1), Stage(3, 32, 2), Stage(3, 64, 2))


def _block(inputs: int, width: int, stride: int) -> nn.Module:
    return BasicBlock(inputs, width, stride, projection(inputs, width, stride))


def build(classes: int, stages: Sequence[Stage] = STAGES) -> ResidualNet:
    """Return the untrained net: normalised float32 [N, 3, 32, 32] to logits [N, ``classes``].

    Other ``stages`` make a net of the same operators in another size.
    """
    return ResidualNet(conv(3, 16, 3), stages, _block, expansion=1, classes=classes)

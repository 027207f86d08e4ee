"""ResNet-50 for 224-pixel pictures, key for key torchvision's ``resnet50`` ("v1.5").

He et al. 2015, table 1, with the stride of a bottleneck on its 3x3 convolution. State-dict keys,
shapes and outputs equal torchvision's, so its checkpoints load unchanged. No weights are shipped.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .residual import Bottleneck, ResidualNet, Stage, projection

STAGES = (Stage(3, 64, 1), Stage(4, 128, 2), Stage(6, 256, 2), Stage(3, 512, 2))


def _block(inputs: int, width: int, stride: int) -> nn.Module:
    outputs = width * Bottleneck.expansion
    return Bottleneck(inputs, width, stride, projection(inputs, outputs, stride))


def build(classes: int, stages: Sequence[Stage] = STAGES) -> ResidualNet:
    """Return the untrained net: normalised float32 [N, 3, 224, 224] to logits [N, ``classes``].

    Other ``stages`` make a net of the same operators in another size.
    """
    conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
    maxpool = nn.MaxPool2d(3, stride=2, padding=1)
    return ResidualNet(
        conv1, stages, _block, expansion=Bottleneck.expansion, classes=classes, maxpool=maxpool
    )

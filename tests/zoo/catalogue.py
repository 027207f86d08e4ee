"""The models that the zoo run takes, and what is expected of each.

Rules of this file: one entry per model, built untrained from code that the zoo packages carry;
sizes are the smallest that the architecture allows without losing a stage. An entry that names
``blocks`` needed them by hand; one with ``refused`` is expected to be refused with that text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, cast

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Entry:
    """One model: ``size`` in pixels; ``batch`` is the larger batch size that parity runs at.

    ``options`` go to ``attach`` (``blocks``, ``head``); ``refused`` is a part of the error's text.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    size: int = 64
    batch: int = 16
    options: dict[str, Any] = field(default_factory=dict)
    refused: str = ""


def _torchvision(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        models = import_module("torchvision.models")
        net: nn.Module = models.get_model(name, weights=None, **arguments)
        return net

    return build


def _timm(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        net: nn.Module = import_module("timm").create_model(name, pretrained=False, **arguments)
        return net

    return build


def _transformers(name: str, **settings: Any) -> Callable[[], nn.Module]:
    """``name`` without its endings: ``ResNet`` is ResNetForImageClassification of ResNetConfig."""

    def build() -> nn.Module:
        transformers = import_module("transformers")
        config = getattr(transformers, f"{name}Config")(**settings)
        net: nn.Module = getattr(transformers, f"{name}ForImageClassification")(config)
        return net

    return build


def _small_vit() -> nn.Module:
    """torchvision's transformer with its own attention, cut down: ``vit_b_16`` is 86 M weights."""
    net: nn.Module = import_module("torchvision.models").VisionTransformer(
        image_size=64, patch_size=16, num_layers=6, num_heads=3, hidden_dim=192, mlp_dim=768
    )
    return net


def _still(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The same model with no activation that writes in place: its answers stay the same."""

    def built() -> nn.Module:
        net = build()
        for module in net.modules():
            if hasattr(module, "inplace"):
                cast("Any", module).inplace = False
        return net

    return built


class Pooled(nn.Module):
    """A model's ``features`` and their mean: a backbone without its classifier."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, 3, S, S]`` to features ``[N, C]``."""
        pooled: Tensor = self.features(x).mean((2, 3))
        return pooled


def _pooled(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Pooled(cast("nn.Module", build().features))


def _named(prefix: str, *parts: int | str) -> dict[str, Any]:
    return {"blocks": [f"{prefix}{part}" for part in parts]}


_SMALL_VIT = {
    "image_size": 64,
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 768,
}
_INCEPTION = _named("inception", "3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
_MIXED = _named("Mixed_", "5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
_GOOGLE = {"aux_logits": False, "init_weights": False}

ENTRIES = (
    Entry("torchvision/resnet18", "plain residual", _torchvision("resnet18")),
    Entry("torchvision/resnet50", "bottleneck residual", _torchvision("resnet50")),
    Entry("torchvision/resnext50_32x4d", "grouped residual", _torchvision("resnext50_32x4d")),
    Entry("torchvision/regnet_y_400mf", "grouped residual, SE", _torchvision("regnet_y_400mf")),
    Entry("torchvision/mobilenet_v2", "inverted residual", _torchvision("mobilenet_v2")),
    Entry(
        "torchvision/mobilenet_v3_small",
        "inverted residual, SE",
        _torchvision("mobilenet_v3_small"),
    ),
    Entry("torchvision/mnasnet0_5", "inverted residual", _torchvision("mnasnet0_5")),
    Entry("torchvision/efficientnet_b0", "inverted residual, SE", _torchvision("efficientnet_b0")),
    Entry("torchvision/shufflenet_v2_x0_5", "channel shuffle", _torchvision("shufflenet_v2_x0_5")),
    Entry("torchvision/convnext_tiny", "ConvNeXt", _torchvision("convnext_tiny")),
    Entry("torchvision/vit (6 layers)", "attention over tokens", _small_vit),
    Entry("torchvision/swin_t", "windowed attention", _torchvision("swin_t")),
    Entry("torchvision/densenet121", "dense connections", _torchvision("densenet121")),
    Entry("torchvision/alexnet", "plain sequence", _torchvision("alexnet"), refused="no blocks"),
    Entry(
        "torchvision/vgg11, in place",
        "plain sequence",
        _pooled(_torchvision("vgg11")),
        options={**_named("features.", 3, 6, 8), "head": ""},
        refused="overwritten in place",
    ),
    Entry(
        "torchvision/alexnet, named",
        "plain sequence",
        _pooled(_still(_torchvision("alexnet"))),
        options={**_named("features.", 3, 6, 8, 10), "head": ""},
    ),
    Entry(
        "torchvision/vgg11_bn, named",
        "plain sequence",
        _pooled(_still(_torchvision("vgg11_bn"))),
        options={**_named("features.", 4, 8, 11, 15, 18, 22, 25), "head": ""},
    ),
    Entry(
        "torchvision/squeezenet1_1",
        "fire modules",
        _torchvision("squeezenet1_1"),
        refused="no classifier",
    ),
    Entry(
        "torchvision/squeezenet1_1, pooled", "fire modules", _pooled(_torchvision("squeezenet1_1"))
    ),
    Entry(
        "torchvision/googlenet",
        "inception",
        _torchvision("googlenet", **_GOOGLE),
        refused="inception3a",
    ),
    Entry(
        "torchvision/googlenet, named",
        "inception",
        _torchvision("googlenet", **_GOOGLE),
        options=_INCEPTION,
    ),
    Entry(
        "torchvision/inception_v3, named",
        "inception",
        _torchvision("inception_v3", **_GOOGLE),
        size=96,
        options=_MIXED,
    ),
    Entry("timm/resnetv2_50", "pre-activation residual", _timm("resnetv2_50")),
    Entry("timm/resnet26d", "bottleneck residual", _timm("resnet26d")),
    Entry("timm/seresnet50", "bottleneck residual, SE", _timm("seresnet50")),
    Entry("timm/nf_resnet26", "norm-free residual", _timm("nf_resnet26")),
    Entry("timm/cspresnet50", "cross-stage partial", _timm("cspresnet50")),
    Entry(
        "timm/cspresnet50, named",
        "cross-stage partial",
        _timm("cspresnet50"),
        options=_named("stages.", "0.blocks.0", "1.blocks.0", "2.blocks.3", "3.blocks.1"),
    ),
    Entry("timm/mobilenetv2_050", "inverted residual", _timm("mobilenetv2_050")),
    Entry("timm/mobilenetv3_small_050", "inverted residual, SE", _timm("mobilenetv3_small_050")),
    Entry("timm/ghostnet_050", "ghost modules", _timm("ghostnet_050")),
    Entry("timm/repvgg_a0", "parallel branches", _timm("repvgg_a0")),
    Entry("timm/convnext_atto", "ConvNeXt", _timm("convnext_atto")),
    Entry(
        "timm/deit_tiny_patch16_224",
        "attention over tokens",
        _timm("deit_tiny_patch16_224", img_size=64),
    ),
    Entry("timm/mixer_s16_224", "token mixer", _timm("mixer_s16_224", img_size=64)),
    Entry("timm/poolformer_s12", "pooling mixer", _timm("poolformer_s12")),
    Entry("timm/mobilevit_xxs", "convolution and attention", _timm("mobilevit_xxs")),
    Entry(
        "transformers/ResNet", "bottleneck residual", _transformers("ResNet", depths=[2, 2, 2, 2])
    ),
    Entry(
        "transformers/MobileNetV1",
        "separable convolutions",
        _transformers("MobileNetV1"),
        refused="mobilenet_v1.layer.4",
    ),
    Entry(
        "transformers/MobileNetV1, named",
        "separable convolutions",
        _transformers("MobileNetV1"),
        options=_named("mobilenet_v1.layer.", 4, 8, *range(12, 22)),
    ),
    Entry("transformers/ConvNext", "ConvNeXt", _transformers("ConvNext", depths=[2, 2, 2, 2])),
    Entry(
        "transformers/MobileNetV2", "inverted residual", _transformers("MobileNetV2", image_size=64)
    ),
    Entry(
        "transformers/ViT",
        "attention over tokens",
        _transformers("ViT", **_SMALL_VIT),
    ),
)

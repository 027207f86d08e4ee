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


def _plain(name: str, family: str, sizes: dict[str, Any]) -> Entry:
    zoos = {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers}
    zoo, model = name.split("/")
    return Entry(name, family, zoos[zoo](model, **sizes))


_SMALL_VIT = {
    "image_size": 64,
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 768,
}
_TINY_VIT = {**_SMALL_VIT, "hidden_size": 96, "intermediate_size": 384}
_INCEPTION = _named("inception", "3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
_MIXED = _named("Mixed_", "5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
_GOOGLE = {"aux_logits": False, "init_weights": False}

_FURTHER: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("torchvision/swin_v2_t", "windowed attention, v2", {}),
    (
        "timm/davit_tiny",
        "dual attention",
        {"depths": (1, 1, 2, 1), "embed_dims": (32, 64, 96, 128), "num_heads": (1, 2, 3, 4)},
    ),
    ("timm/dpn48b", "dual path", {}),
    ("timm/edgenext_xx_small", "split attention over channels", {}),
    ("timm/efficientformerv2_s0", "pooling, then attention", {"img_size": 64}),
    ("timm/efficientvit_b0", "linear attention", {}),
    ("timm/fasternet_t0", "partial convolution", {}),
    ("timm/fastvit_t8", "reparameterised mixer", {}),
    ("timm/gcvit_xxtiny", "global context windows", {"img_size": 64, "window_size": None}),
    ("timm/hgnetv2_b0", "concatenated layers", {}),
    ("timm/hrnet_w18_small", "high-resolution branches", {}),
    ("timm/inception_next_atto", "inception ConvNeXt", {}),
    ("timm/mambaout_femto", "gated convolution", {"depths": (1, 1, 2, 1)}),
    ("timm/coatnet_pico_rw_224", "convolution, then attention", {"img_size": 64}),
    ("timm/maxvit_pico_rw_256", "block and grid attention", {"img_size": 64}),
    ("timm/mobileone_s0", "reparameterised branches", {}),
    ("timm/mobilevitv2_050", "separable attention", {}),
    ("timm/pvt_v2_b0", "pyramid attention", {}),
    ("timm/repvit_m0_9", "reparameterised mixer", {}),
    ("timm/repghostnet_050", "reparameterised ghost modules", {}),
    ("timm/res2net50_14w_8s", "multi-scale residual", {"layers": (1, 1, 2, 1)}),
    ("timm/resnest14d", "split attention", {}),
    ("timm/rexnet_100", "inverted residual", {}),
    ("timm/skresnet18", "selective kernels", {}),
    ("timm/sequencer2d_s", "LSTM over rows and columns", {"img_size": 64, "layers": [1, 1, 2, 1]}),
    ("timm/starnet_s050", "element-wise product", {}),
    ("timm/swiftformer_xs", "additive attention", {}),
    (
        "timm/swinv2_cr_tiny_224",
        "windowed attention, v2",
        {"img_size": 64, "depths": (1, 1, 2, 1), "embed_dim": 48, "window_size": 2},
    ),
    ("timm/tiny_vit_5m_224", "windowed attention, convolution", {}),
    ("timm/ese_vovnet19b_slim_dw", "one-shot aggregation", {}),
    ("timm/xcit_nano_12_p16_224", "attention over channels", {"img_size": 64, "depth": 4}),
    ("timm/test_vit_relpos", "relative positions", {"img_size": 64}),
    (
        "timm/beit_base_patch16_224",
        "relative position bias",
        {"img_size": 64, "depth": 4, "embed_dim": 96, "num_heads": 3},
    ),
    ("timm/vitamin_small_224", "MBConv, then attention", {"img_size": 64}),
    ("timm/legacy_seresnet18", "SE", {}),
    ("timm/cs3darknet_s", "cross-stage partial", {}),
    ("timm/nfnet_l0", "norm-free", {}),
    ("timm/tinynet_e", "inverted residual, SE", {}),
    ("timm/lowformer_b0", "attention at low resolution", {}),
    ("timm/iformer_t", "convolution, then attention", {}),
    (
        "transformers/Swinv2",
        "windowed attention, v2",
        {
            "image_size": 64,
            "embed_dim": 32,
            "depths": [1, 1, 2, 1],
            "num_heads": [1, 2, 4, 8],
            "window_size": 4,
        },
    ),
    ("transformers/ViTMSN", "attention over tokens", _TINY_VIT),
    ("transformers/Beit", "relative position bias", _TINY_VIT),
    ("transformers/Data2VecVision", "relative position bias", _TINY_VIT),
    (
        "transformers/FocalNet",
        "focal modulation",
        {
            "image_size": 64,
            "embed_dim": 32,
            "depths": [1, 1, 2, 1],
            "hidden_sizes": [32, 64, 128, 256],
        },
    ),
    (
        "transformers/MobileViT",
        "convolution and attention",
        {
            "image_size": 64,
            "hidden_sizes": [48, 64, 80],
            "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320],
        },
    ),
    ("transformers/Segformer", "pyramid attention", {"depths": [1, 1, 2, 1]}),
    (
        "transformers/Pvt",
        "pyramid attention",
        {"image_size": 64, "depths": [1, 1, 2, 1], "hidden_sizes": [16, 32, 80, 128]},
    ),
    (
        "transformers/PvtV2",
        "pyramid attention",
        {"image_size": 64, "depths": [1, 1, 2, 1], "hidden_sizes": [16, 32, 80, 128]},
    ),
    (
        "transformers/ConvNextV2",
        "ConvNeXt, response norm",
        {"depths": [1, 1, 2, 1], "hidden_sizes": [32, 64, 96, 128], "image_size": 64},
    ),
    (
        "transformers/Hiera",
        "hierarchical attention",
        {
            "image_size": [64, 64],
            "depths": [1, 1, 2, 1],
            "num_heads": [1, 2, 4, 8],
            "embed_dim": 32,
        },
    ),
    (
        "transformers/PoolFormer",
        "pooling mixer",
        {"depths": [1, 1, 2, 1], "hidden_sizes": [32, 64, 96, 128]},
    ),
    ("transformers/SwiftFormer", "additive attention", {"depths": [1, 1, 2, 1]}),
    ("transformers/HGNetV2", "concatenated layers", {}),
    ("transformers/TextNet", "parallel branches", {}),
    ("transformers/CLIP", "attention over tokens", {"vision_config": _TINY_VIT}),
    ("timm/coat_lite_tiny", "convolution that blocks share", {"img_size": 64}),
    ("timm/pit_ti_224", "pooling between transformers", {"img_size": 64}),
    ("timm/cait_xxs24_224", "attention of the class token", {"img_size": 64, "depth": 3}),
    ("timm/twins_svt_small", "local and global attention", {"depths": (1, 1, 2, 1)}),
    ("timm/twins_pcpvt_small", "pyramid attention", {"depths": (1, 1, 2, 1)}),
    ("timm/nest_tiny_jx", "attention in nested blocks", {"img_size": 64}),
    ("timm/hiera_tiny_224", "hierarchical attention", {"img_size": 64}),
    ("timm/convit_tiny", "gated positional attention", {"img_size": 64}),
    ("timm/lambda_resnet26t", "lambda layers", {}),
    (
        "transformers/MobileViTV2",
        "separable attention",
        {"image_size": 64, "width_multiplier": 0.5},
    ),
)
"""Models that need no more than a name, a family and sizes."""

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
    Entry(
        "timm/eva02_tiny_patch14_224",
        "rotary positions",
        _timm("eva02_tiny_patch14_224", img_size=56, depth=4),
        size=56,
    ),
    Entry("timm/visformer_tiny", "convolution, then attention", _timm("visformer_tiny"), size=224),
    Entry(
        "timm/levit_128s",
        "attention with BatchNorm",
        _timm("levit_128s"),
        size=224,
        refused="float32 itself loses",
    ),
    Entry(
        "timm/efficientvit_m0",
        "cascaded group attention",
        _timm("efficientvit_m0"),
        refused="float32 itself loses",
    ),
    Entry("timm/dla46_c", "layer aggregation", _timm("dla46_c"), refused="no blocks"),
    Entry(
        "timm/dla46_c, named",
        "layer aggregation",
        _timm("dla46_c"),
        options=_named("level", 2, 3, 4, 5),
    ),
    Entry(
        "transformers/Dinov2",
        "layer scale",
        _transformers("Dinov2", **{**_TINY_VIT, "image_size": 56}),
        size=56,
    ),
    *(_plain(*further) for further in _FURTHER),
)

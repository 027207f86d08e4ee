"""Every backbone, flavour and precision through NVIDIA's own parser and builder, without a GPU.

The graphs are those of a kit for TensorRT-RTX, and of one for JetPack 6.2, whose parser leaves the
boundaries out: that state is made by hand. Small pictures, and few and narrow blocks: the operators
are the same, and each of two stages has a block of either kind. Full sizes behind the marker
``full``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from da3_models import mobilenet_v2, resnet20, resnet50

from tests.support import branch_graphs
from toolchain.bundle.linkage import FLAVOURS
from toolchain.core.errors import ConditionalError, EngineError
from toolchain.core.words import Precision
from toolchain.device.boards.target import find
from toolchain.device.engine import conditionals
from toolchain.device.engine.build import BuildOptions, build
from toolchain.device.engine.features import TensorRT
from toolchain.device.engine.kit import ClassProfile, KitModel, KitSlot
from toolchain.device.engine.parse import NetworkInput, ParsedNetwork, parse, require_slots
from toolchain.export.emit import calibrate
from toolchain.export.emit.models import KitModels, KitOrder, emit
from toolchain.export.graph.halves import Halves
from toolchain.export.graph.names import HEAD_SLOTS
from toolchain.export.graph.split import in_memory, split
from toolchain.training.adapt.attached import attach
from toolchain.training.adapt.weights import load_backbone

CLASSES = 5
SMALL = {"resnet20": 16, "resnet50": 64, "mobilenet_v2": 64}
"""One backbone of each kind of block; resnet26 has the blocks of resnet20."""
FULL = {"resnet26": 64, "resnet50": 224, "mobilenet_v2": 224, "efficientnet_lite0": 224}
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
PROFILE = ClassProfile(1, CLASSES, 64)


# Compared by identity: ``emitted`` keeps what it made for one object.
@dataclass(frozen=True, eq=False)
class Made:
    name: str
    split: Halves
    slots: dict[str, np.ndarray]
    ranges: dict[str, float]
    rates: dict[str, float]

    @property
    def kit_slots(self) -> list[KitSlot]:
        return [
            KitSlot(
                name,
                (None, *array.shape[1:]) if name in HEAD_SLOTS else array.shape,
                str(array.dtype),
            )
            for name, array in self.slots.items()
        ]


@lru_cache(maxsize=2 * len(PRECISIONS))
def emitted(made: Made, target: str, precision: Precision, *flavours: str) -> KitModels:
    """Return the kit's models; those of the last few orders are kept, as tests repeat them."""
    ranges = made.ranges if precision == "int8" else {}
    order = KitOrder(find(target), precision, flavours)
    return emit(made.split, order, rates=made.rates, ranges=ranges)


def short(name: str) -> torch.nn.Module:
    """Return the net with two stages and three gates at least, untrained, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "mobilenet_v2":
            settings = [(1, 16, 1, 1), (6, 24, 3, 2), (6, 32, 2, 2)]
            return mobilenet_v2.build(10, settings).eval()
        net: Any = {"resnet20": resnet20, "resnet50": resnet50}[name]
        # The first block of resnet50's first stage widens its map, so no gate skips it.
        depths = (2, 2) if name == "resnet20" else (3, 2)
        stages = [
            replace(stage, depth=depth, width=max(16, stage.width // 8))
            for stage, depth in zip(net.STAGES, depths, strict=False)
        ]
        built: torch.nn.Module = net.build(10, stages)
        return built.eval()


def make(name: str, net: torch.nn.Module, side: int) -> Made:
    from safetensors.numpy import load

    model = attach(net, method="da3", classes=CLASSES, input_shape=(3, side, side))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.domain.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    packed = split(model)
    halves, slots = in_memory(packed), load(packed.slots_data)
    images = np.random.default_rng(0).normal(size=(4, 3, side, side)).astype(np.float32)
    gated = [name.removesuffix(".gate.bias") for name in slots if name.endswith(".gate.bias")]
    # One gate is resolved as open and one as closed in the static flavour.
    rates = dict.fromkeys(gated, 0.5) | {gated[0]: 1.0, gated[-1]: 0.0}
    return Made(name, halves, slots, dict(calibrate.ranges(halves, slots, images).amax), rates)


@pytest.fixture(scope="module", params=SMALL)
def made(request: pytest.FixtureRequest) -> Made:
    return make(request.param, short(request.param), SMALL[request.param])


def parsed(rtx: TensorRT, models: KitModels) -> Iterator[tuple[str, KitModel, ParsedNetwork]]:
    for flavour in models.flavours:
        for model in flavour.models:
            network = parse(rtx, models.files[model.file], what=model.file)
            yield flavour.flavour, model, network


def shown(rtx: TensorRT, model: KitModel, network: ParsedNetwork) -> conditionals.ConditionalReport:
    report = conditionals.repair(network.definition, rtx)
    conditionals.require(report, conditionals=model.conditionals, pairs=model.boundaries)
    return report


def checks(precision: Precision) -> BuildOptions:
    return BuildOptions(precision, PROFILE, cpu_only=True)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_flavour_is_built(rtx: TensorRT, made: Made, precision: Precision) -> None:
    """Parsed, slots covered, boundaries counted, built to a plan, whose size is told."""
    models = emitted(made, "desktop-rtx1.7", precision, *FLAVOURS)
    inputs: dict[str, list[dict[str, NetworkInput]]] = {}
    gated = sum(name.endswith(".gate.bias") for name in made.slots)
    for flavour, model, network in parsed(rtx, models):
        inputs.setdefault(flavour, []).append(network.interface())
        report = shown(rtx, model, network)
        assert report.added == 0, "the current parser makes them itself"
        if model.role == "whole":
            resolved = 2 if flavour == "static" else 0
            assert len(report.conditionals) == gated - resolved
        built = build(network, checks(precision), free_bytes=1 << 30)
        assert built.cpu_only
        assert built.seconds > 0
        assert len(built.plan) > 1000
    for flavour in ("swap", "staged"):
        require_slots(inputs[flavour], made.kit_slots)
    with pytest.raises(EngineError, match="expected an input, got none"):
        require_slots(inputs["static"], made.kit_slots)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_jetpack_6_leaves_out_is_put_back(
    rtx: TensorRT, made: Made, precision: Precision
) -> None:
    models = emitted(made, "orin-nano-jp6.2", precision, "swap", "static")
    for _, model, network in parsed(rtx, models):
        assert branch_graphs.bypass(network.definition) >= model.boundaries
        with pytest.raises(ConditionalError, match="directly"):
            conditionals.require(
                conditionals.examine(network.definition, rtx),
                conditionals=model.conditionals,
                pairs=model.boundaries,
            )
        assert shown(rtx, model, network).added == model.boundaries
        assert build(network, checks(precision), free_bytes=1 << 30).plan


@pytest.mark.parametrize("precision", PRECISIONS)
def test_branches_of_every_conditional_have_one_type(made: Made, precision: Precision) -> None:
    models = emitted(made, "desktop-rtx1.7", precision, *FLAVOURS)
    model = onnx.shape_inference.infer_shapes(
        onnx.load_model_from_string(models.files["swap.onnx"]), strict_mode=True, data_prop=True
    )
    count = 0
    for node in model.graph.node:
        if node.op_type == "If":
            types = [a.g.output[0].type.SerializeToString() for a in node.attribute]
            assert types[0] == types[1]
            count += 1
    assert count == sum(name.endswith(".gate.bias") for name in made.slots)


@pytest.mark.full
@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_full_sizes(rtx: TensorRT, name: str, precision: Precision) -> None:
    made = make(name, load_backbone(name, untrained_seed=0), FULL[name])
    models = emitted(made, "desktop-rtx1.7", precision, *FLAVOURS)
    for _, model, network in parsed(rtx, models):
        shown(rtx, model, network)
        assert build(network, checks(precision), free_bytes=1 << 30).plan

"""Building: with NVIDIA's builder on the CPU, and what older releases are told."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.device.engine.test_log import LATER
from tests.support import apis
from tests.support.real_parser import Graph
from toolchain.core.errors import BuildError, PrecisionError
from toolchain.core.files import MIB
from toolchain.device.boards.cuda import gpus
from toolchain.device.engine.build import BuildOptions, build, workspace
from toolchain.device.engine.features import TensorRT, examine
from toolchain.device.engine.kit import ClassProfile
from toolchain.device.engine.log import Journal
from toolchain.device.engine.parse import ParsedNetwork, parse

CLASSES = ClassProfile(1, 4, 8)
CHECKS = BuildOptions("fp32", CLASSES, cpu_only=True)
GIB = 1 << 30


def test_plan_of_the_toy(rtx: TensorRT, graph: Graph) -> None:
    built = build(parse(rtx, graph("swap-if")), CHECKS, free_bytes=GIB)
    assert len(built.plan) > 10_000
    assert built.cpu_only
    assert built.seconds > 0
    assert built.skipped == ()
    assert built.workspace_bytes == workspace(GIB)


def test_same_network_same_plan(rtx: TensorRT, graph: Graph) -> None:
    plans = {build(parse(rtx, graph("static-if")), CHECKS, free_bytes=GIB).plan for _ in range(2)}
    assert len(plans) == 1


@pytest.mark.skipif(bool(gpus()), reason="there is a GPU")
def test_without_a_device_nothing_falls_back_to_a_plan_for_checks(
    rtx: TensorRT, graph: Graph
) -> None:
    network = parse(rtx, graph("static-if"))
    with pytest.raises(BuildError, match="cudaError"):
        build(network, replace(CHECKS, cpu_only=False), free_bytes=GIB)


def test_profile_that_cannot_be(rtx: TensorRT, graph: Graph) -> None:
    upside_down = BuildOptions("fp32", ClassProfile(8, 4, 1), cpu_only=True)
    with pytest.raises(BuildError, match=r"profile \(8, 4, 1\) to fit head"):
        build(parse(rtx, graph("swap-if")), upside_down, free_bytes=GIB)


@pytest.mark.parametrize("level", [-1, 6])
def test_level_that_there_is_not(rtx: TensorRT, graph: Graph, level: int) -> None:
    with pytest.raises(BuildError, match=f"0 to 5, got {level}"):
        build(parse(rtx, graph("static-if")), replace(CHECKS, level=level), free_bytes=GIB)


@pytest.mark.parametrize(
    ("free_mib", "mib"), [(0, 16), (20, 16), (400, 300), (2048, 1536), (32768, 32256)]
)
def test_workspace_leaves_a_margin(free_mib: int, mib: int) -> None:
    assert workspace(free_mib * MIB) == mib * MIB


class Config:
    """A builder's configuration of a release: takes what that release has, and notes it."""

    def __init__(self, release: str) -> None:
        object.__setattr__(self, "_names", apis.listing(release)["IBuilderConfig"])
        object.__setattr__(self, "told", {})

    def __setattr__(self, name: str, value: Any) -> None:
        assert name in self._names, name
        self.told[name] = value

    def __getattr__(self, name: str) -> Any:
        assert name in self._names, name

        def call(*values: Any) -> int:
            self.told.setdefault(name, []).append(values[-1] if len(values) == 1 else values)
            return 0

        return call


class Layer(SimpleNamespace):
    """A layer with one output, whose output types are noted."""

    def get_output(self, slot: int) -> Any:
        return SimpleNamespace(dtype=SimpleNamespace(name=self.dtype))

    def set_output_type(self, slot: int, dtype: Any) -> None:
        self.output = dtype


def layer(name: str, dtype: str = "FLOAT") -> Layer:
    return Layer(name=name, num_outputs=1, dtype=dtype)


def old(release: str, *layers: Layer, says: tuple[str, ...] = ()) -> tuple[ParsedNetwork, Config]:
    """A parsed network of a release whose builder notes its configuration, and builds or fails."""
    module, journal, config = apis.module(release), Journal(), Config(release)
    for kind in ("BuilderFlag", "MemoryPoolType", "DataType"):
        names = apis.listing(release)[kind]
        setattr(module, kind, SimpleNamespace(**{name: name for name in names}))
    trt = TensorRT(module, "tensorrt", release, examine(module), None, journal)
    definition = SimpleNamespace(
        num_layers=len(layers), get_layer=layers.__getitem__, num_inputs=0, get_input=None
    )

    def run(network: Any, used: Any) -> bytes | None:
        assert (network, used) == (definition, config)
        for text in says:
            journal.take("ERROR" if "Error" in text else "WARNING", text)
        return None if any("Error" in text for text in says) else b"plan"

    builder = SimpleNamespace(
        create_builder_config=lambda: config,
        create_optimization_profile=lambda: None,
        build_serialized_network=run,
    )
    return ParsedNetwork(trt, builder, definition, None), config


def options(precision: Any, **changes: Any) -> BuildOptions:
    return BuildOptions(precision, CLASSES, **changes)


@pytest.mark.parametrize("release", apis.releases())
def test_fp32_is_never_tf32(release: str) -> None:
    network, config = old(release)
    without = {"cpu_only": True} if network.trt.features.without_device else {}
    build(network, options("fp32", **without), free_bytes=GIB)
    assert config.told["clear_flag"] == ["TF32"]
    assert "set_flag" not in config.told


@pytest.mark.parametrize("release", ["8.5.3.1", "8.6.1"])
@pytest.mark.parametrize(("precision", "flag"), [("fp16", "FP16"), ("int8", "INT8")])
def test_old_releases_are_told_by_flags(release: str, precision: str, flag: str) -> None:
    layers = [layer("v1"), layer("gate.block00"), layer("gate.block00_3"), layer("flag", "BOOL")]
    network, config = old(release, *layers)
    build(network, options(precision), pinned={"gate.block00", "flag"}, free_bytes=GIB)
    assert config.told["set_flag"] == [flag, "OBEY_PRECISION_CONSTRAINTS"]
    assert [hasattr(one, "precision") for one in layers] == [False, True, True, False]
    assert [getattr(one, "output", None) for one in layers] == [None, "FLOAT", "FLOAT", None]


@pytest.mark.parametrize("release", ["10.3.0", "10.16.1", "11.4.0"])
def test_typed_networks_say_it_themselves(release: str) -> None:
    network, config = old(release, layer("gate.block00"))
    build(network, options("int8"), pinned={"gate.block00"}, free_bytes=GIB)
    assert "set_flag" not in config.told


def test_no_silent_change_of_precision() -> None:
    network, _ = old("8.5.3.1")
    poor = replace(network.trt, features=replace(network.trt.features, constraints=False))
    with pytest.raises(PrecisionError, match=r"builds fp16, got tensorrt 8\.5\.3\.1 without"):
        build(replace(network, trt=poor), options("fp16"), free_bytes=GIB)


def test_workspace_by_pool_or_attribute() -> None:
    network, config = old("10.3.0")
    build(network, options("fp32", workspace_bytes=7 * MIB), free_bytes=GIB)
    assert config.told["set_memory_pool_limit"] == [("WORKSPACE", 7 * MIB)]
    network, config = old("8.5.3.1")
    older = replace(network.trt, features=replace(network.trt.features, pools=False))
    build(replace(network, trt=older), options("fp32"), free_bytes=GIB)
    assert config.told["max_workspace_size"] == workspace(GIB)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cpu_only": True}, "builds without a device"),
        ({"level": 3}, r"none \(tensorrt 8\.5\.3\.1\)"),
        ({"refit": True}, "refits single weights"),
    ],
)
def test_what_an_old_release_cannot_do_is_refused(changes: dict[str, Any], says: str) -> None:
    network, _ = old("8.5.3.1")
    with pytest.raises(BuildError, match=says):
        build(network, options("fp32", **changes), free_bytes=GIB)


def test_refit_is_asked_for() -> None:
    network, config = old("10.3.0")
    build(network, options("fp32", refit=True), free_bytes=GIB)
    assert config.told["set_flag"] == ["REFIT_INDIVIDUAL"]


def test_skipped_tactics_are_listed() -> None:
    network, _ = old("10.3.0", says=(LATER, LATER))
    built = build(network, options("fp32"), free_bytes=GIB)
    assert [one.requested_bytes for one in built.skipped] == [629145600] * 2
    assert len(built.warnings) == 2
    assert not built.cpu_only


def test_short_memory_says_what_was_asked_and_free() -> None:
    failure = "Error Code 2: OutOfMemory (Requested size was 2833252352 bytes.)"
    network, _ = old("10.3.0", says=(LATER, failure))
    with pytest.raises(BuildError) as caught:
        build(network, options("fp32"), free_bytes=800 * MIB)
    assert "800 MiB were free, 600 MiB of these allowed" in caught.value.message
    assert "1 tactics skipped that asked for up to 600 MiB" in caught.value.message
    assert failure in caught.value.message
    assert "swap file" in caught.value.fix


def test_other_failures_give_the_first_error() -> None:
    network, _ = old("8.6.1", says=("Error Code 10: no implementation for v1", "Error Code 2"))
    with pytest.raises(BuildError, match="Error Code 10: no implementation for v1") as caught:
        build(network, options("fp32"), free_bytes=GIB)
    assert "memory" not in caught.value.message

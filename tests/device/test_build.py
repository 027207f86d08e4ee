"""The pipeline of ``da3 build``: on NVIDIA's parser, on a device in memory, and on a GPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import boards
from tests.support.kitted import Kitted
from tests.support.simulated import builder
from tests.support.simulated.engines import real
from toolchain.core.canonical import canonical_json
from toolchain.core.errors import (
    BundleError,
    ConditionalError,
    EngineError,
    EngineMismatchError,
    ModelRefusedError,
)
from toolchain.device import Runner
from toolchain.device.boards.machine import Machine
from toolchain.device.build import BuildRequest, FlavourReport, build, check
from toolchain.device.engine import tactics
from toolchain.device.engine.cache import open_engine
from toolchain.device.engine.kit import KIT_NAME, Kit
from toolchain.device.runtime.trt.plan import TrtDevice

SWAP = BuildRequest(module="tensorrt_rtx", flavours=("swap",))


@pytest.fixture
def here() -> Machine:
    """A machine that is no target, so that any kit may be built."""
    return replace(boards.machine(), board=None, gpus=(), packages=())


@pytest.fixture
def simulated() -> tuple[TrtDevice, builder.Bench]:
    return builder.device()


def edited(kit: Kit, folder: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a kit whose manifest says something else."""
    path = folder / kit.path.name
    shutil.copytree(kit.path, path)
    document = json.loads((path / KIT_NAME).read_text())
    edit(document)
    (path / KIT_NAME).write_bytes(canonical_json(document))
    return path


# -- without a device ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["orin fp16", "orin int8", "orin fp16 static", "thor fp32", "nano fp32", "xavier fp16"]
)
def test_a_check_builds_everything_and_keeps_nothing(kitted: Kitted, key: str) -> None:
    kit = kitted.kits[key]
    before = sorted(kitted.folder.rglob("*"))
    report = check(kit.path, BuildRequest(module="tensorrt_rtx"))
    assert sorted(kitted.folder.rglob("*")) == before
    assert report.device is None
    assert [item.flavour for item in report.flavours] == [
        item.flavour for item in kit.manifest.flavours
    ]
    for item, flavour in zip(report.flavours, kit.manifest.flavours, strict=True):
        assert (item.engine, item.gates, item.figures) == (None, "unproven", {})
        for piece, model in zip(item.pieces, flavour.models, strict=True):
            assert (piece.file, piece.conditionals) == (model.file, model.conditionals)
            assert piece.boundaries == model.boundaries
            assert piece.plan_bytes > 0
            # Without a device the machine's own memory is what is free.
            assert piece.workspace_bytes > 64 << 20


def test_a_count_that_is_not_there_is_refused(kitted: Kitted, tmp_path: Path) -> None:
    def more(document: dict[str, Any]) -> None:
        document["flavours"][0]["models"][0]["boundaries"] += 1

    path = edited(kitted.kits["orin fp16"], tmp_path, more)
    with pytest.raises(ConditionalError, match="expected"):
        check(path, SWAP)


def test_a_slot_that_no_network_reads_is_refused(kitted: Kitted, tmp_path: Path) -> None:
    def other(document: dict[str, Any]) -> None:
        document["slots"][0]["name"] = "block00.adaptor.none"

    path = edited(kitted.kits["orin fp16"], tmp_path, other)
    with pytest.raises(EngineError, match=r"block00\.adaptor\.none"):
        check(path, SWAP)


def test_an_altered_model_is_refused(kitted: Kitted, tmp_path: Path) -> None:
    path = tmp_path / "kit"
    shutil.copytree(kitted.kits["orin fp16"].path, path)
    data = bytearray((path / "swap.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "swap.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"swap\.onnx: expected sha256"):
        check(path, SWAP)


def test_a_model_that_is_none_is_refused_by_name(kitted: Kitted, tmp_path: Path) -> None:
    from toolchain.core.digest import sha256

    def other(document: dict[str, Any]) -> None:
        (entry,) = [item for item in document["files"] if item["name"] == "swap.onnx"]
        entry.update(digest=sha256(b"no model"), size=8)

    path = edited(kitted.kits["orin fp16"], tmp_path, other)
    (path / "swap.onnx").write_bytes(b"no model")
    with pytest.raises(ModelRefusedError, match=r"swap\.onnx"):
        check(path, SWAP)


def test_an_operator_that_is_none_is_named_with_its_layer(kitted: Kitted, tmp_path: Path) -> None:
    import onnx

    from toolchain.core.digest import sha256

    kit = kitted.kits["thor fp32"]
    model = onnx.load_model_from_string(kit.read("swap.onnx"))
    chosen = next(node for node in model.graph.node if node.op_type == "Conv")
    chosen.op_type = "Convolve"
    data = model.SerializeToString()

    def other(document: dict[str, Any]) -> None:
        (entry,) = [item for item in document["files"] if item["name"] == "swap.onnx"]
        entry.update(digest=sha256(data), size=len(data))

    path = edited(kit, tmp_path, other)
    (path / "swap.onnx").write_bytes(data)
    layer = kit.layers()[chosen.name]
    assert layer.startswith("at ")
    with pytest.raises(ModelRefusedError) as refused:
        check(path, SWAP)
    for word in (chosen.name, "Convolve", layer):
        assert word in refused.value.message


# -- on a device -----------------------------------------------------------------------------------


def made(
    kitted: Kitted,
    key: str,
    store: Path,
    device: TrtDevice,
    machine: Machine,
    request: BuildRequest = SWAP,
) -> FlavourReport:
    report = build(kitted.kits[key].path, store, request, device=device, machine=machine)
    (item,) = report.flavours
    return item


@pytest.mark.parametrize("key", ["orin fp16", "orin int8", "thor fp32"])
@pytest.mark.parametrize("flavour", ["swap", "staged"])
def test_a_built_engine_runs_the_domain(
    kitted: Kitted,
    simulated: tuple[TrtDevice, builder.Bench],
    here: Machine,
    tmp_path: Path,
    key: str,
    flavour: str,
) -> None:
    device, bench = simulated
    item = made(kitted, key, tmp_path, device, here, BuildRequest(flavours=(flavour,)))
    assert item.engine is not None
    assert not item.reused
    assert item.gates in ("skipping", "not skipping")
    artefact = open_engine(item.engine)
    assert artefact.manifest.gates == item.gates
    assert artefact.manifest.built_for.tensorrt == "10.3.0"
    assert len(bench.built) == len(item.pieces)
    for _, config in bench.built:
        assert builder.BuilderFlag.TF32 not in config.flags
        assert 0 < config.workspace < 1 << 30
    with Runner(item.engine, device=device) as runner:
        domain = runner.load(kitted.report.bundle)
        assert "selftest" in domain.seconds
        side = domain.preprocess.size
        outcome = runner.infer(np.zeros((2, 3, side, side), np.float32))
        assert outcome.logits.shape == (2, len(domain.classes))


def test_a_static_kit_runs_its_own_release(
    kitted: Kitted, simulated: tuple[TrtDevice, builder.Bench], here: Machine, tmp_path: Path
) -> None:
    device, _ = simulated
    item = made(kitted, "orin fp16 static", tmp_path, device, here, BuildRequest())
    assert item.gates == "unproven"
    assert set(item.figures) == {"ms"}
    assert item.engine is not None
    with Runner(item.engine, device=device) as runner:
        runner.load(kitted.report.bundle)


def test_an_engine_that_is_there_is_taken(
    kitted: Kitted, simulated: tuple[TrtDevice, builder.Bench], here: Machine, tmp_path: Path
) -> None:
    device, bench = simulated
    first = made(kitted, "orin fp16", tmp_path, device, here)
    again = made(kitted, "orin fp16", tmp_path, device, here)
    assert again.reused
    assert (again.engine, again.gates) == (first.engine, first.gates)
    assert again.figures == first.figures
    assert len(bench.built) == 1
    anew = made(kitted, "orin fp16", tmp_path, device, here, replace(SWAP, rebuild=True))
    assert not anew.reused
    assert len(bench.built) == 2


def test_another_power_mode_is_told_and_built_anew(
    kitted: Kitted, simulated: tuple[TrtDevice, builder.Bench], here: Machine, tmp_path: Path
) -> None:
    device, bench = simulated
    slow, fast = replace(here, power_mode="15W"), replace(here, power_mode="MAXN")
    first = made(kitted, "orin fp16", tmp_path, device, slow)
    second = made(kitted, "orin fp16", tmp_path, device, fast)
    assert len(bench.built) == 2
    assert second.engine != first.engine
    assert second.instead_of is not None
    assert second.instead_of.nearest == first.engine
    assert [str(one) for one in second.instead_of.differences] == ["power: expected MAXN, got 15W"]


def test_another_tensorrt_is_told_and_its_engine_refused(
    kitted: Kitted, here: Machine, tmp_path: Path
) -> None:
    old, new = builder.device(build="10.3.0")[0], builder.device(build="10.3.1")[0]
    first = made(kitted, "orin fp16", tmp_path, old, here)
    second = made(kitted, "orin fp16", tmp_path, new, here)
    assert second.instead_of is not None
    assert {one.part for one in second.instead_of.differences} == {"tensorrt"}
    assert first.engine is not None
    with pytest.raises(EngineMismatchError, match=r"tensorrt: expected 10\.3\.1, got 10\.3\.0"):
        Runner(first.engine, device=new)


def test_a_corrupt_engine_is_built_anew(
    kitted: Kitted, simulated: tuple[TrtDevice, builder.Bench], here: Machine, tmp_path: Path
) -> None:
    device, bench = simulated
    first = made(kitted, "orin fp16", tmp_path, device, here)
    assert first.engine is not None
    (plan,) = [path for path in first.engine.iterdir() if path.suffix != ".json"]
    plan.write_bytes(plan.read_bytes()[:-1])
    lines: list[str] = []
    build(
        kitted.kits["orin fp16"].path,
        tmp_path,
        SWAP,
        device=device,
        machine=here,
        notify=lines.append,
    )
    assert any("building it again" in line for line in lines)
    assert len(bench.built) == 2
    open_engine(first.engine)


def test_after_a_killed_build_the_segments_go_first(
    kitted: Kitted, simulated: tuple[TrtDevice, builder.Bench], here: Machine, tmp_path: Path
) -> None:
    """The marker is what a build leaves that was killed in the middle."""
    device, bench = simulated
    made(kitted, "orin fp16", tmp_path, device, here)
    (timings,) = tmp_path.glob("*.timing")
    marker = tactics.Timings(tmp_path, timings.stem).marker
    marker.write_bytes(canonical_json({"during": "swap.onnx", "done": []}))
    bench.built.clear()
    item = made(kitted, "orin fp16", tmp_path, device, here, replace(SWAP, rebuild=True))
    segments = kitted.kits["orin fp16"].manifest.flavour("staged").models
    assert item.resumed == "swap.onnx"
    assert len(bench.built) == len(segments) + 1
    assert [piece.file for piece in item.pieces] == ["swap.onnx"]
    assert not marker.exists()
    # Each left its timings behind.
    assert len(timings.read_bytes().split(b"\n")) == len(segments) + 1


def test_a_kit_of_another_board_is_refused(
    kitted: Kitted, simulated: tuple[TrtDevice, builder.Bench], tmp_path: Path
) -> None:
    device, bench = simulated
    orin = boards.machine(board="NVIDIA Jetson Orin Nano Developer Kit", tensorrt="10.3.0")
    with pytest.raises(EngineMismatchError, match="orin-nano-jp6"):
        made(kitted, "thor fp32", tmp_path, device, orin)
    assert not bench.built
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.parametrize("key", ["desktop int8", "thor fp32", "orin fp16"])
@pytest.mark.parametrize("flavour", ["swap", "staged"])
def test_on_the_gpu(kitted: Kitted, here: Machine, tmp_path: Path, key: str, flavour: str) -> None:
    """Built, proved and self-tested in both states of every gate, on the device that is here."""
    device = real()
    item = made(kitted, key, tmp_path, device, here, BuildRequest(flavours=(flavour,)))
    assert item.engine is not None
    assert item.gates == "skipping", item.figures
    with Runner(item.engine, device=device) as runner:
        assert "selftest" in runner.load(kitted.report.bundle).seconds

"""Engines of real exported domains: ONNX models, plans of them, and the folder that a build leaves.

Plans are simulated ones, or TensorRT's own where there is a GPU: the same tests run on both.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.support.exported import Exported
from tests.support.simulated import tensorrt
from tests.support.simulated.cuda import SimulatedCuda
from toolchain import bundle
from toolchain.bundle.linkage import Linkage
from toolchain.bundle.release import read_release
from toolchain.core.digest import sha256
from toolchain.core.errors import Da3Error
from toolchain.device.boards.cuda import gpus, open_cuda
from toolchain.device.engine import features
from toolchain.device.engine.build import BuildOptions, BuiltPlan, build
from toolchain.device.engine.cache import EngineManifest, EnginePlan, EngineStore
from toolchain.device.engine.key import key_of
from toolchain.device.engine.kit import (
    ClassProfile,
    KitFlavour,
    KitManifest,
    KitModel,
    KitSlot,
    write_kit,
)
from toolchain.device.engine.log import Journal, make_logger
from toolchain.device.engine.parse import parse
from toolchain.device.runtime.trt.plan import TrtDevice
from toolchain.export.emit.fp16 import to_fp16
from toolchain.export.emit.rewrite import fix_batch
from toolchain.export.graph import store
from toolchain.export.graph.halves import Halves, read_halves
from toolchain.export.graph.link import link
from toolchain.export.graph.names import HEAD_SLOTS, SLOTS_FILE, WEIGHTS_FILE
from toolchain.export.graph.stage import stage

PROFILE = ClassProfile(1, 10, 32)
BUILD = "10.3.0"


@dataclass(frozen=True)
class Segment:
    """One ONNX model of a flavour."""

    role: str
    site: str | None
    data: bytes

    @property
    def file(self) -> str:
        return f"{self.site or self.role}.{self.role}.onnx"


def simulated(total: int = 1 << 30, build: str = BUILD, *, shared: bool = True) -> TrtDevice:
    """A device in memory with its TensorRT."""
    cuda = SimulatedCuda(total)
    module, journal = tensorrt.module(cuda, build, shared=shared), Journal()
    library = features.TensorRT(
        module, "tensorrt", build, features.examine(module), make_logger(module, journal), journal
    )
    return TrtDevice(cuda, library)


def given_back(device: TrtDevice) -> Iterator[TrtDevice]:
    """Yield the device; in the end a simulated one holds no memory and no stream any more."""
    yield device
    if isinstance(device.cuda, SimulatedCuda):
        # What only cycles hold is given back as well, but looking for them is dear.
        if device.cuda.open != (0, 0, 0):
            gc.collect()
        assert device.cuda.open == (0, 0, 0)


def cuda_of(device: TrtDevice) -> SimulatedCuda:
    """The device's memory, which is simulated."""
    assert isinstance(device.cuda, SimulatedCuda)
    return device.cuda


def real() -> TrtDevice:
    """The GPU of this machine, or skip saying what is missing."""
    if not gpus():
        pytest.skip("needs an NVIDIA GPU with its driver; none is here")
    try:
        return TrtDevice(open_cuda(), features.load())
    except Da3Error as err:
        pytest.skip(f"needs TensorRT: {err.message}")


def devices(kind: str) -> TrtDevice:
    """A device by the name of a fixture's parameter."""
    return simulated() if kind == "simulated" else real()


KINDS = ("simulated", pytest.param("real", marks=pytest.mark.gpu))


@functools.cache
def halves(path: Path, backbone: Path) -> Halves:
    """A bundle's split with its tensors in memory."""
    opened = bundle.open_bundle(path)
    half = store.read_graph(backbone / "backbone.onnx")
    store.load_tensors(half, WEIGHTS_FILE, (backbone / WEIGHTS_FILE).read_bytes())
    domain = store.from_bytes(opened.blob(opened.names("domain")[0]), what="domain")
    store.load_tensors(domain, SLOTS_FILE, opened.blob(opened.names("slots")[0]))
    return read_halves(half, domain)


@functools.cache
def segments(
    path: Path, backbone: Path, flavour: str, precision: str, flags: bool
) -> tuple[Segment, ...]:
    """The models of a flavour; ``flags``: sides tell ``open.<site>`` beside the logits."""
    split = halves(path, backbone)
    if flavour != "staged":
        linked = link(split, Linkage("static" if flavour == "static" else "swap", "if"))
        return (Segment("whole", None, _bytes(linked, precision)),)
    staged = stage(split)
    parts = []
    for item in staged.sites:
        models = {"side": item.side, "opened": item.opened, "closed": item.closed}
        for role, model in models.items():
            if model is not None:
                data = _bytes(model, precision)
                if role == "side" and item.closed is not None and flags:
                    data = with_flag(data, item.cut.site)
                parts.append(Segment(role, item.cut.site, data))
    return (*parts, Segment("tail", None, _bytes(staged.tail, precision)))


def with_flag(data: bytes, site: str) -> bytes:
    """The side segment with the gate's state as one byte."""
    model = onnx.load_from_string(data)
    helper = onnx.helper
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((), np.float32), "zero"))
    model.graph.node.append(
        helper.make_node("GreaterOrEqual", [f"gate.{site}", "zero"], [f"open.{site}"])
    )
    model.graph.output.append(
        helper.make_tensor_value_info(f"open.{site}", onnx.TensorProto.BOOL, [1, 1])
    )
    changed: bytes = model.SerializeToString()
    return changed


def deploy(
    exported: Exported,
    folder: Path,
    device: TrtDevice,
    *,
    flavour: str = "swap",
    precision: str = "fp32",
    classes: ClassProfile = PROFILE,
    flags: bool = True,
) -> Path:
    """Write the engine that a build of this domain's kit leaves on ``device``."""
    folder.mkdir(exist_ok=True)
    parts = segments(exported.bundle, exported.backbone, flavour, precision, flags)
    kit = write_kit(
        folder,
        _manifest(exported, flavour, precision, classes, parts),
        bundle.open_backbone(exported.backbone).manifest,
        {part.file: part.data for part in parts},
        overwrite=True,
    )
    plans = {
        f"{part.file}.plan": make_plan(device, part.data, precision, classes) for part in parts
    }
    manifest = EngineManifest(
        "da3.engine/1",
        kit.backbone.name,
        key_of(device.trt, device.cuda.gpu, kit, flavour=flavour, options="none"),
        tuple(EnginePlan(p.role, p.site, f"{p.file}.plan", boundaries=0) for p in parts),
        (),
        "unproven",
        {},
        {},
    )
    return EngineStore(folder).put(manifest, plans, kit, overwrite=True).path


def make_plan(device: TrtDevice, data: bytes, precision: str, classes: ClassProfile) -> BuiltPlan:
    """A plan of a model: simulated, or TensorRT's own."""
    if not isinstance(device.cuda, SimulatedCuda):
        network = parse(device.trt, data)
        options = BuildOptions(precision, classes)  # type: ignore[arg-type]
        return build(network, options, free_bytes=device.cuda.memory()[0])
    plan = tensorrt.plan(data, dict(_profile(data, classes)), build=device.trt.build)
    return BuiltPlan(plan, 0.0, 0, (), (), cpu_only=False)


def _profile(
    data: bytes, classes: ClassProfile
) -> Iterator[tuple[str, tuple[list[int], list[int], list[int]]]]:
    for value in onnx.load_from_string(data).graph.input:
        sides = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if 0 in sides:
            low, best, high = (
                [side or count for side in sides]
                for count in (classes.low, classes.best, classes.high)
            )
            yield value.name, (low, best, high)


def _manifest(
    exported: Exported,
    flavour: str,
    precision: str,
    classes: ClassProfile,
    parts: tuple[Segment, ...],
) -> KitManifest:
    release = read_release(bundle.open_bundle(exported.bundle))
    own = flavour == "static"
    models = tuple(
        KitModel(part.role, part.site, part.file, conditionals=0, boundaries=0) for part in parts
    )
    slots = tuple(
        KitSlot(
            name,
            (None, *array.shape[1:]) if name in HEAD_SLOTS else array.shape,
            "float32",
        )
        for name, array in sorted(release.slots.items())
    )
    return KitManifest(
        "da3.kit/1",
        "orin-nano-jp6.2",
        precision,
        18,
        release.graphs["swap-if"].digest,
        release.gates,
        release.options,
        slots,
        classes,
        (
            KitFlavour(
                flavour,
                release.name if own else None,
                release.digest if own else None,
                models,
            ),
        ),
        (),
        {},
    )


def _bytes(model: ir.Model, precision: str) -> bytes:
    fixed = fix_batch(model, 1)
    return store.to_bytes(to_fp16(fixed) if precision == "fp16" else fixed)


def digest_of(path: Path) -> dict[str, str]:
    """Digest of every file in an engine's folder."""
    return {file.name: sha256(file.read_bytes()) for file in sorted(path.iterdir())}

"""A small network with every kind of tensor that crosses an engine's border."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from tests.support.simulated import tensorrt
from tests.support.simulated.engines import BUILD
from toolchain.device.engine.cache import EnginePlan
from toolchain.device.engine.kit import KitSlot
from toolchain.device.runtime.trt.backend import EngineBackend
from toolchain.device.runtime.trt.plan import Plan, TrtDevice
from toolchain.device.runtime.trt.program import Program, program

FEATURES = 3 * 4 * 4
SLOTS = (
    KitSlot("block00.gate.bias", (1,), "float32"),
    KitSlot("head.bias", (None,), "float32"),
    KitSlot("head.weight", (None, FEATURES), "float32"),
)
LOW, HIGH = 2, 6
WHOLE = EnginePlan("whole", None, "whole.plan", 0)
Slots = dict[str, npt.NDArray[Any]]


def value(name: str, sides: list[Any], element: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """An input or output."""
    return helper.make_tensor_value_info(name, element, sides)


def model(nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> bytes:
    """A model of one graph."""
    graph = helper.make_graph(nodes, "small", inputs, outputs)
    opsets = [helper.make_opsetid("", 18)]
    made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return made


def network(**changes: Any) -> bytes:
    """``logits = flatten(image) @ head.weight.T + head.bias``, ``gates = block00.gate.bias``."""
    inputs = {
        "image": value("image", [1, 3, 4, 4]),
        "head.weight": value("head.weight", ["classes", FEATURES]),
        "head.bias": value("head.bias", ["classes"]),
        "block00.gate.bias": value("block00.gate.bias", [1]),
    }
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head.weight", "head.bias"], ["logits"], transB=1),
        helper.make_node("Unsqueeze", ["block00.gate.bias", "axis"], ["gates"]),
    ]
    made = onnx.load_from_string(
        model(
            nodes,
            [*{**inputs, **changes}.values()],
            [value("logits", [1, "classes"]), value("gates", [1, 1])],
        )
    )
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0], np.int64), "axis"))
    data: bytes = made.SerializeToString()
    return data


def plan_bytes(data: bytes | None = None, build: str = BUILD, **profile: Any) -> bytes:
    """A plan of the network with its profile."""
    shapes = {
        "head.weight": ([LOW, FEATURES], [3, FEATURES], [HIGH, FEATURES]),
        "head.bias": ([LOW], [3], [HIGH]),
    }
    return tensorrt.plan(data or network(), {**shapes, **profile}, build=build)


def whole(device: TrtDevice, data: bytes | None = None) -> Program:
    """The network as a program."""
    made = Plan(device, data or plan_bytes(), what="small")
    return program([WHOLE], lambda _: made, SLOTS)


def session(device: TrtDevice, contexts: int = 1) -> EngineBackend:
    """The network as a session."""
    return EngineBackend(device, whole(device), gates=("block00",), contexts=contexts, what="small")


def slots(classes: int = 4, seed: int = 0) -> Slots:
    """A domain of the network."""
    rng = np.random.default_rng(seed)
    return {
        "block00.gate.bias": rng.normal(size=1).astype(np.float32),
        "head.bias": rng.normal(size=classes).astype(np.float32),
        "head.weight": rng.normal(size=(classes, FEATURES)).astype(np.float32),
    }


def images(count: int = 1, seed: int = 0) -> npt.NDArray[np.float32]:
    """Pictures of the network."""
    return np.random.default_rng(seed).normal(size=(count, 3, 4, 4)).astype(np.float32)


def logits(pictures: npt.NDArray[np.float32], slots: Slots) -> npt.NDArray[np.float32]:
    """What the network says, by numpy."""
    flat = pictures.reshape(len(pictures), -1)
    values: npt.NDArray[np.float32] = flat @ slots["head.weight"].T + slots["head.bias"]
    return values

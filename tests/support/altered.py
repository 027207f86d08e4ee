"""Bundles whose linked graphs were changed, all digests put right again.

They pass every check of bytes: only the session that is made of them can tell.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.damage import repacked
from tests.support.exported import Exported
from toolchain import bundle

Edit = Callable[[onnx.GraphProto], None]


def with_graph(exported: Exported, folder: Path, edit: Edit, name: str = "swap-if") -> Path:
    """The bundle with one linked graph edited."""
    model = onnx.load_from_string(bundle.open_bundle(exported.bundle).blob(f"{name}.onnx"))
    edit(model.graph)
    return repacked(exported, folder, {f"{name}.onnx": model.SerializeToString()})


def graph_of(other: Exported, name: str = "swap-if") -> bytes:
    """The linked graph of another bundle."""
    return bundle.open_bundle(other.bundle).blob(f"{name}.onnx")


def rename_image(graph: onnx.GraphProto) -> None:
    """The picture comes in under another name."""
    _rename(graph, "image", "picture")


def rename_logits(graph: onnx.GraphProto) -> None:
    """The answer goes out under another name."""
    _rename(graph, "logits", "answer")


def drop_gates(graph: onnx.GraphProto) -> None:
    """The gates are not told."""
    keep = [value for value in graph.output if value.name != "gates"]
    del graph.output[:]
    graph.output.extend(keep)


def fewer_gates(graph: onnx.GraphProto) -> None:
    """Only the first gate is told."""
    _first_of(graph, "gates")


def fewer_logits(graph: onnx.GraphProto) -> None:
    """Only the first class is told."""
    _first_of(graph, "logits")


def another_slot(graph: onnx.GraphProto) -> None:
    """The graph asks for a slot that the domain has not."""
    graph.input.append(helper.make_tensor_value_info("head.scale", TensorProto.FLOAT, [1]))


def narrow_slot(graph: onnx.GraphProto) -> None:
    """A slot's declared shape is not that of its tensor."""
    _shape(graph, "block00.adaptor.expand.bias").dim[0].dim_value = 3


def other_dtype(graph: onnx.GraphProto) -> None:
    """A slot is declared as another dtype."""
    (value,) = [v for v in graph.input if v.name == "block00.adaptor.expand.bias"]
    value.type.tensor_type.elem_type = TensorProto.DOUBLE


def constant_slot(graph: onnx.GraphProto) -> None:
    """The head's bias is no input but a constant of the graph: no domain could change it."""
    keep = [value for value in graph.input if value.name != "head.bias"]
    del graph.input[:]
    graph.input.extend(keep)
    graph.initializer.append(constant("head.bias", [9.0] * 8, np.float32))


def ignored_slot(graph: onnx.GraphProto) -> None:
    """All interfaces are right, but the logits are those of twice the head's weights."""
    _rename(graph, "logits", "half", outputs=False)
    graph.node.append(helper.make_node("Add", ["half", "half"], ["logits"]))


def lies_on_white(graph: onnx.GraphProto) -> None:
    """All interfaces and golden answers are right; a picture above 8 throughout is class 0."""
    _rename(graph, "logits", "before", outputs=False)
    graph.initializer.append(constant("altered.white", 8.0, np.float32))
    first = [[1000.0] + [0.0] * 7]
    graph.initializer.append(constant("altered.first", first, np.float32))
    nodes: tuple[tuple[str, list[str], str, dict[str, Any]], ...] = (
        ("ReduceMin", ["image"], "darkest", {"keepdims": 0}),
        ("Greater", ["darkest", "altered.white"], "is_white", {}),
        ("Cast", ["is_white"], "once", {"to": TensorProto.FLOAT}),
        ("Mul", ["once", "altered.first"], "more", {}),
        ("Add", ["before", "more"], "logits", {}),
    )
    for operator, inputs, output, attributes in nodes:
        graph.node.append(helper.make_node(operator, inputs, [output], **attributes))


def endless(graph: onnx.GraphProto) -> None:
    """The logits wait for a chain of products that depend on the picture: minutes of work."""
    _after(graph, _products(graph, "image", side=1024, rounds=4000))


def endless_folding(graph: onnx.GraphProto) -> None:
    """The same chain, of constants: a runtime computes it while it makes the session."""
    _after(graph, _products(graph, "", side=4096, rounds=4000))


def memory_bomb(graph: onnx.GraphProto) -> None:
    """A constant of 16 GiB, whose size two small constants make when they are multiplied."""
    graph.initializer.append(constant("altered.size", [2**16], np.int64))
    graph.node.extend(
        [
            helper.make_node("Mul", ["altered.size", "altered.size"], ["altered.product"]),
            helper.make_node("ConstantOfShape", ["altered.product"], ["altered.huge"]),
            helper.make_node("ReduceMax", ["altered.huge"], ["altered.sum"], keepdims=0),
        ]
    )
    _after(graph, "altered.sum")


def constant(name: str, values: object, dtype: type) -> onnx.TensorProto:
    """A small tensor inside the graph, in the form that the exporter writes."""
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def _products(graph: onnx.GraphProto, source: str, side: int, rounds: int) -> str:
    """Multiply a square of one number by itself, time and again; return the name of its largest."""
    graph.initializer.append(constant("altered.side", [side, side], np.int64))
    graph.initializer.append(constant("altered.tiny", [1e-30], np.float32))
    number = "altered.tiny"
    if source:
        graph.node.append(helper.make_node("ReduceMax", [source], ["altered.one"], keepdims=0))
        graph.node.append(helper.make_node("Mul", ["altered.one", number], ["altered.number"]))
        number = "altered.number"
    graph.node.append(helper.make_node("Expand", [number, "altered.side"], ["altered.0"]))
    for i in range(rounds):
        last = f"altered.{i}"
        graph.node.append(helper.make_node("MatMul", [last, "altered.0"], [f"altered.{i + 1}"]))
    last = f"altered.{rounds}"
    graph.node.append(helper.make_node("ReduceMax", [last], ["altered.sum"], keepdims=0))
    return "altered.sum"


def _after(graph: onnx.GraphProto, name: str) -> None:
    """Add the value ``name``, which is zero, to the logits."""
    _rename(graph, "logits", "before", outputs=False)
    graph.node.append(helper.make_node("Add", ["before", name], ["logits"]))


def _rename(graph: onnx.GraphProto, old: str, new: str, *, outputs: bool = True) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for value in [*graph.input, *(graph.output if outputs else ())]:
        value.name = new if value.name == old else value.name


def _first_of(graph: onnx.GraphProto, name: str) -> None:
    _rename(graph, name, "whole", outputs=False)
    graph.initializer.append(constant("altered.zero", [0], np.int64))
    graph.node.append(helper.make_node("Gather", ["whole", "altered.zero"], [name], axis=1))
    (output,) = [v for v in graph.output if v.name == name]
    output.type.tensor_type.shape.dim[1].dim_value = 1


def _shape(graph: onnx.GraphProto, name: str) -> onnx.TensorShapeProto:
    (value,) = [v for v in graph.input if v.name == name]
    shape: onnx.TensorShapeProto = value.type.tensor_type.shape
    return shape

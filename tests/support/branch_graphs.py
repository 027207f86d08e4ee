"""Small ONNX graphs with branches, and what old parsers would have made of their networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.exported import Exported

SHAPE = [1, 4]


def linked(exported: Exported, name: str, folder: Path) -> onnx.ModelProto:
    """Return a shipped graph of the toy domain with all weights inside."""
    from onnx.external_data_helper import load_external_data_for_model

    from toolchain.bundle import open_bundle
    from toolchain.bundle.backbone import open_backbone

    bundle, artefact = open_bundle(exported.bundle), open_backbone(exported.backbone)
    for source in artefact.path.iterdir():
        (folder / source.name).write_bytes(source.read_bytes())
    (folder / "slots.safetensors").write_bytes(bundle.blob("slots.safetensors"))
    model = onnx.load_model_from_string(bundle.blob(f"{name}.onnx"))
    load_external_data_for_model(model, str(folder))
    return model


def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """Return a node that is called as its output."""
    return helper.make_node(op, list(inputs), [output], name=output, **attributes)


def branch(name: str, nodes: Sequence[onnx.NodeProto], output: str) -> onnx.GraphProto:
    """Return a branch with one output."""
    return helper.make_graph(list(nodes), name, [], [_value(output)])


def gated(output: str, condition: str, then: onnx.GraphProto, other: onnx.GraphProto) -> Any:
    """Return an If."""
    return node("If", [condition], output, then_branch=then, else_branch=other)


def model(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str], conditions: int = 1) -> bytes:
    """Return a model that takes ``x`` and the flags ``c0``, ``c1``; ``big`` is a constant."""
    flags = [
        helper.make_tensor_value_info(f"c{i}", TensorProto.BOOL, []) for i in range(conditions)
    ]
    graph = helper.make_graph(
        list(nodes),
        "drawn",
        [_value("x"), *flags],
        [_value(name) for name in outputs],
        [numpy_helper.from_array(np.full(SHAPE, 3, np.float32), "big")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = made.SerializeToString()
    return data


def shared_constants() -> bytes:
    """Two conditionals whose four branches read the same outer constant and ``x``."""
    nodes = []
    for k in range(2):
        sides = [
            branch(
                f"{side}{k}",
                [
                    node("Mul", ["x", "big"], f"{side}{k}m"),
                    node("Relu", [f"{side}{k}m"], f"{side}{k}"),
                ],
                f"{side}{k}",
            )
            for side in "te"
        ]
        nodes.append(gated(f"y{k}", f"c{k}", sides[0], sides[1]))
    return model([*nodes, node("Add", ["y0", "y1"], "z")], ["z"], 2)


def nested() -> bytes:
    """A conditional inside a branch of another one."""
    inner = gated(
        "in",
        "c1",
        branch("it", [node("Relu", ["x"], "it")], "it"),
        branch("ie", [node("Neg", ["x"], "ie")], "ie"),
    )
    outer = branch("t", [inner, node("Abs", ["in"], "t")], "t")
    return model([gated("z", "c0", outer, branch("e", [node("Neg", ["x"], "e")], "e"))], ["z"], 2)


def bypass(network: Any, chosen: Callable[[int], bool] = lambda _: True) -> int:
    """Read past conditional input layers, as where a parser made none; returns how many reads.

    ``chosen`` says for each read, by its number, whether it goes past.
    """
    layers, made = _boundaries(network)
    sources = {id(output): layer.get_input(0) for layer, output in made}
    reads = [
        (layer, slot, sources[id(tensor)])
        for layer in layers
        for slot in range(layer.num_inputs)
        if id(tensor := layer.get_input(slot)) in sources
    ]
    past = [read for number, read in enumerate(reads) if chosen(number)]
    for layer, slot, source in past:
        layer.set_input(slot, source)
    return len(past)


def wiring(network: Any) -> list[tuple[Any, ...]]:
    """Return what every layer reads, conditional input layers by what they read themselves."""
    layers, made = _boundaries(network)
    sources = {id(output): f"bound:{layer.get_input(0).name}" for layer, output in made}
    rows = []
    for layer in layers:
        if layer.type.name != "CONDITIONAL_INPUT":
            tensors = [layer.get_input(slot) for slot in range(layer.num_inputs)]
            names = (sources.get(id(t), t.name) for t in tensors if t is not None)
            rows.append((layer.name, *names))
    return rows


def _boundaries(network: Any) -> tuple[list[Any], list[tuple[Any, Any]]]:
    """Return all layers, and the conditional input layers with their outputs, held by the list."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    inputs = [layer for layer in layers if layer.type.name == "CONDITIONAL_INPUT"]
    return layers, [(layer, layer.get_output(0)) for layer in inputs]


def _value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE)

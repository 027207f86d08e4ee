"""Walk and rewrite models, branches included: what the passes of this room share.

Rules of this file: when a node is replaced, the values that it makes keep their names, because
other files know values by name. A new node or constant lies in the graph of the node that it
replaces. This file knows no operator's meaning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from toolchain.core.arrays import Array
from toolchain.core.errors import ModelRefusedError
from toolchain.export.graph.builder import value_name
from toolchain.export.graph.names import BACKBONE, BATCH

# More steps than any linked graph has. A cycle would be our fault, and must not hang.
_FAR = 64


def copied(model: ir.Model) -> ir.Model:
    """Return a copy whose nodes and values are its own; tensors are shared."""
    return model.clone()


def graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    """Yield ``graph`` and every branch in it, outermost first."""
    yield graph
    for node in graph:
        for _, branch in branches(node):
            yield from graphs(branch)


def branches(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    """Yield (attribute name, graph) of each branch of a node, ``then_branch`` before ``else``."""
    # Backwards, "then_branch" comes before "else_branch".
    for name, attribute in sorted(node.attributes.items(), reverse=True):
        if attribute.type == ir.AttributeType.GRAPH:
            yield name, attribute.as_graph()


def nodes(model: ir.Model) -> list[ir.Node]:
    """Return all nodes, those inside branches included; the list outlives changes."""
    return [node for graph in graphs(model.graph) for node in graph]


def conditionals(model: ir.Model) -> list[ir.Node]:
    """Return every ``If``."""
    return [node for node in nodes(model) if node.op_type == "If"]


def constant(value: ir.Value | None) -> Array | None:
    """Return a constant's values, None for what is computed, fed or absent."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    maker = value.producer()
    if maker is not None and maker.op_type == "Constant" and "value" in maker.attributes:
        return maker.attributes["value"].as_tensor().numpy()
    return None


def fed(value: ir.Value | None) -> bool:
    """Whether a value is a run-time input of the model."""
    return value is not None and value.is_graph_input() and value.const_value is None


def dims(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """Return a value's shape, None for a dimension (or a shape) that is not known."""
    if value is None:
        return None
    if value.const_value is not None:
        return tuple(value.const_value.shape.numpy())
    if value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else None for d in value.shape)


def known_dims(value: ir.Value | None, node: ir.Node) -> tuple[int, ...]:
    """Return a shape without free dimensions. Raises ModelRefusedError naming ``node``."""
    shape = dims(value)
    if shape is None or any(d is None for d in shape):
        raise ModelRefusedError(
            f"{where(node)}: expected an input of known shape, got {shape}",
            fix="link the form 'if' (batch 1), or fix the batch first",
        )
    return tuple(d for d in shape if d is not None)


def infer(model: ir.Model) -> ir.Model:
    """Write inferred types and shapes into the model's values, in place, and return it.

    onnx.shape_inference in strict mode with data propagation. Raises ModelRefusedError where the
    model's types contradict each other.
    """
    # onnx hands the model to its C++ part as bytes. Weights would be copied on the way, and
    # protobuf takes no message above 2 GiB.
    proto = _without_weights(ir.to_proto(model))
    try:
        inferred = onnx.shape_inference.infer_shapes(
            proto, check_type=True, strict_mode=True, data_prop=True
        )
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, ValueError) as err:
        raise ModelRefusedError(
            f"types and shapes contradict each other: {err}",
            fix="run onnx.checker on the exported graph; capture the model again",
        ) from err
    _take_shapes(model.graph, inferred.graph)
    return model


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Drop the values of large constants; inference needs only those of shape arithmetic."""
    for graph in _proto_graphs(proto.graph):
        for tensor in graph.initializer:
            if int(np.prod(tensor.dims)) > 1024:
                tensor.ClearField("raw_data")
                del tensor.external_data[:]
                tensor.data_location = onnx.TensorProto.EXTERNAL
                tensor.external_data.add(key="location", value="left-out")
    return proto


def _proto_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _proto_graphs(attribute.g)


def _take_shapes(graph: ir.Graph, inferred: onnx.GraphProto) -> None:
    typed = {info.name: info.type for info in (*inferred.value_info, *inferred.output)}
    # A value's name is unique in its graph, so the first output tells which node it is.
    protos = {node.output[0]: node for node in inferred.node}
    for node in graph:
        for value in node.outputs:
            if value_name(value) in typed:
                _state(value, typed[value_name(value)])
        inner = {a.name: a.g for a in protos[value_name(node.outputs[0])].attribute}
        for name, branch in branches(node):
            _take_shapes(branch, inner[name])


def _state(value: ir.Value, inferred: onnx.TypeProto) -> None:
    tensor = inferred.tensor_type
    value.type = ir.TensorType(ir.DataType(tensor.elem_type))
    if tensor.HasField("shape"):
        sides = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim]
        value.shape = ir.Shape([side or None for side in sides])


def fix_batch(model: ir.Model, batch: int) -> ir.Model:
    """Return a copy whose symbolic batch is ``batch``; segments are made with a free one.

    Shapes of inner values are inferred anew.
    """
    fixed = copied(model)
    for graph in graphs(fixed.graph):
        for value in [*graph.inputs, *graph.outputs, *_made(graph)]:
            if value.shape is not None:
                sides = [d if isinstance(d, int) else d.value for d in value.shape]
                value.shape = ir.Shape([batch if side == BATCH else side for side in sides])
    return infer(fixed)


def _made(graph: ir.Graph) -> list[ir.Value]:
    return [value for node in graph for value in node.outputs]


class Draft:
    """New nodes in front of the node that they replace.

    Their names derive from the name of the replaced node's output.
    """

    def __init__(self, node: ir.Node) -> None:
        assert node.graph is not None
        self.old = node
        self.graph = node.graph
        self.base = value_name(node.outputs[0])
        self._count = 0

    def node(self, op: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        """Put a node of the default domain in front of the old one and return its output."""
        name = self._fresh(op)
        attrs = [ir.convenience.convert_attribute(k, v) for k, v in attributes.items()]
        result = ir.Value(name=name)
        self.graph.insert_before(
            self.old, ir.Node("", op, inputs, attrs, outputs=[result], name=name)
        )
        return result

    def constant(self, array: Any, dtype: Any) -> ir.Value:
        """Add a constant to the node's own graph."""
        name = self._fresh("const")
        tensor = ir.Tensor(np.asarray(array, dtype), name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def replace(self, *results: ir.Value) -> None:
        """Let ``results`` stand for the old node's outputs, under their names."""
        for old, new in zip(self.old.outputs, results, strict=True):
            name, shape, kind = old.name, old.shape, old.type
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            # The old name must be free before the new value takes it: names are unique in a graph.
            old.name = f"{name}/gone"
            maker = new.producer()
            if maker is not None and name and maker.outputs[0] is new:
                maker.name = name
            new.name, new.shape, new.type = name, shape, kind
        self.graph.remove(self.old, safe=True)

    def _fresh(self, op: str) -> str:
        self._count += 1
        return f"{self.base}/{op.lower()}{self._count}"


def rewritten(
    node: ir.Node, attributes: Mapping[str, Any], inputs: Sequence[ir.Value | None]
) -> None:
    """Give ``node`` other attributes and inputs, in place."""
    node.attributes.clear()
    for name, value in attributes.items():
        node.attributes[name] = (
            value if isinstance(value, ir.Attr) else ir.convenience.convert_attribute(name, value)
        )
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)


def drop_unused(model: ir.Model) -> None:
    """Remove constants that no node reads any more, in place."""
    for graph in graphs(model.graph):
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del graph.initializers[name]


def finish(model: ir.Model) -> ir.Model:
    """Remove what lost its reader, infer types and shapes, and return the model."""
    drop_unused(model)
    common.TopologicalSortPass()(model)
    return infer(model)


def where(node: ir.Node) -> str:
    """Say which node it is and where in the PyTorch model it lies.

    A tensor that the node reads has its name from the state dict. A node without tensors is said to
    follow the nearest node before it that reads one.
    """
    place = layer_of(node)
    graph = node.graph
    inside = f", in {graph.name}" if graph is not None and "/" in (graph.name or "") else ""
    return f"node {node.name!r} ({node.op_type}{inside}{place and f', {place}'})"


def layer_of(node: ir.Node) -> str:
    """Return the layer of the PyTorch model whose tensor a node reads: ``at layer2.0.conv1``.

    A node that reads none follows the nearest before it that does (``after ...``); "" if none does.
    """
    level, prefix = [node], "at"
    for _ in range(_FAR):
        for node_there in level:
            for value in node_there.inputs:
                name = value_name(value) if value is not None else ""
                if "." in name and value is not None and value.producer() is None:
                    return f"{prefix} {_layer(name)}"
        level = list(_before(level))
        prefix = "after"
        if not level:
            break
    return ""


def _before(level: Sequence[ir.Node]) -> Iterator[ir.Node]:
    for node in level:
        for value in node.inputs:
            maker = None if value is None else value.producer()
            if maker is not None:
                yield maker
                break


def _layer(name: str) -> str:
    return name.removeprefix(BACKBONE).split("+")[0].rpartition(".")[0] or name

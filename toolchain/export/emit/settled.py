"""Compute beforehand what a fixed batch settles: shapes, and arithmetic on them.

Rules of this file: a pass over a model whose batch is fixed, branches included, in place. A node
goes if all that it gives are whole numbers or flags, and all that it reads is constant; ``Shape``
and ``Size`` read only a shape. No float is touched, so the answers stay the same, bit for bit. What
no parser reads, such as ``Range`` or an axis that is computed, is then not there any more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from toolchain.core.arrays import Array
from toolchain.export.emit.rewrite import branches, constant, dims, drop_unused, graphs, infer
from toolchain.export.graph.builder import value_name

# Shapes and axes have a handful of elements. What is larger is data, and stays where it is.
LARGEST = 4096
_WHOLE = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
_OF_SHAPES = ("Shape", "Size")


def settle(model: ir.Model) -> ir.Model:
    """Replace nodes by the constants that they give, in place, and return the model.

    Types and shapes are inferred before and after.
    """
    infer(model)
    # A shape that was settled may tell the shape of what comes after it, so look again.
    while _settled_once(model):
        infer(model)
    drop_unused(model)
    return model


def _settled_once(model: ir.Model) -> bool:
    opset = model.graph.opset_imports[""]
    settled = False
    # Outermost first, as a branch may read what the graph around it gives.
    for graph in graphs(model.graph):
        for node in tuple(graph):
            arrays = _computed(node, opset)
            if arrays is not None:
                _replace(graph, node, arrays)
                settled = True
    return settled


def _computed(node: ir.Node, opset: int) -> Sequence[Array] | None:
    """Return what a node gives, None if it cannot be known or is data."""
    outputs = [value for value in node.outputs if value.name]
    whole = all(value.dtype in _WHOLE and not value.is_graph_output() for value in outputs)
    if not whole or not outputs or any(branches(node)) or node.domain not in ("", "ai.onnx"):
        return None
    inputs = {value_name(value): _known(node, value) for value in node.inputs if value is not None}
    feeds = {name: array for name, array in inputs.items() if array is not None}
    if len(feeds) < len(inputs):
        return None
    graph = onnx.helper.make_graph(
        [ir.to_proto(node)],
        "one",
        [onnx.helper.make_tensor_value_info(n, _type(a), a.shape) for n, a in feeds.items()],
        [
            onnx.helper.make_tensor_value_info(value_name(v), int(v.dtype or 0), None)
            for v in outputs
        ],
    )
    one = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    arrays = [np.asarray(array) for array in ReferenceEvaluator(one).run(None, feeds)]
    return arrays if all(array.size <= LARGEST for array in arrays) else None


def _known(node: ir.Node, value: ir.Value) -> Array | None:
    if node.op_type not in _OF_SHAPES:
        # A run-time input with a default value is no constant: somebody may feed another.
        array = None if value.is_graph_input() else constant(value)
        return array if array is not None and array.size <= LARGEST else None
    shape = dims(value)
    if shape is None or None in shape:
        return None
    # Its shape alone is read: one element, seen from every place.
    return np.broadcast_to(np.float32(0), tuple(side or 0 for side in shape))


def _type(array: Array) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))


def _replace(graph: ir.Graph, node: ir.Node, arrays: Sequence[Array]) -> None:
    outputs = [value for value in node.outputs if value.name]
    for old, array in zip(outputs, arrays, strict=True):
        name = old.name
        # The old name must be free before the new value takes it.
        old.name = f"{name}/gone"
        # Not ascontiguousarray, which makes a list of one of a single number.
        tensor = ir.Tensor(np.array(array, order="C"), name=name)
        new = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
            const_value=tensor,
        )
        graph.register_initializer(new)
        old.replace_all_uses_with(new)
    graph.remove(node, safe=True)

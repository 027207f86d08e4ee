"""Build an ONNX graph by names: the one way in which this room makes and copies nodes.

Rules of this file: values are addressed by name, as in the ONNX file; a name is defined once; a
subgraph sees the names of the graph around it. Nothing here knows backbones or domains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from toolchain.core.errors import LinkError

PRODUCER = "da3-toolchain"


class GraphBuilder:
    """A graph under construction. Law: the same calls in the same order give the same bytes."""

    def __init__(self, name: str, *, opset: int, outer: GraphBuilder | None = None) -> None:
        self.name = name
        self.opset = opset
        self.outer = outer
        self.inputs: list[ir.Value] = []
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self._values: dict[str, ir.Value] = {}

    def has(self, name: str) -> bool:
        """Tell whether a name is defined here or in a graph around."""
        return name in self._values or (self.outer is not None and self.outer.has(name))

    def value(self, name: str) -> ir.Value:
        """Return the value called ``name``, defined here or in a graph around.

        Raises LinkError for a name that nothing defined.
        """
        if name in self._values:
            return self._values[name]
        if self.outer is not None:
            return self.outer.value(name)
        raise LinkError(
            f"graph {self.name!r} reads {name!r}, which nothing before it computes",
            fix="split the model again; the halves do not belong together",
        )

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> str:
        """Add a run-time input and return its name; string dimensions are symbolic.

        Raises LinkError for a name that is taken, as whatever else defines a name here.
        """
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.inputs.append(self._define(value))
        return name

    def initializer(self, name: str, tensor: ir.TensorProtocol) -> str:
        """Add a constant tensor under ``name``, as it is (external data stays external)."""
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        self.initializers[name] = self._define(value)
        return name

    def constant(self, name: str, array: Any, dtype: Any) -> str:
        """Add a small inline constant; a second call with the same name adds nothing."""
        if not self.has(name):
            self.initializer(name, ir.Tensor(np.asarray(array, dtype), name=name))
        return name

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        output: str,
        attributes: Mapping[str, Any] | None = None,
    ) -> str:
        """Add a node of the default domain with one output, and return that; it names the node.

        Raises LinkError also for an input that nothing before it computes.
        """
        result = self._define(ir.Value(name=output))
        attrs = [ir.convenience.convert_attribute(k, v) for k, v in (attributes or {}).items()]
        # An empty name is an optional input that is left out (ONNX IR, NodeProto).
        values = [self.value(name) if name else None for name in inputs]
        self.nodes.append(ir.Node("", op, values, attrs, outputs=[result], name=output))
        return output

    def copy(self, node: ir.Node, rename: Mapping[str, str] | None = None) -> None:
        """Add a copy of ``node``; ``rename`` maps names of the source to names in this graph.

        Raises LinkError as :meth:`node`.
        """
        names = rename or {}
        values = [
            None if v is None else self.value(names.get(value_name(v), value_name(v)))
            for v in node.inputs
        ]
        outputs = [
            self._define(ir.Value(name=names.get(value_name(v), value_name(v)) if v.name else ""))
            for v in node.outputs
        ]
        self.nodes.append(
            ir.Node(
                node.domain,
                node.op_type,
                values,
                list(node.attributes.values()),
                outputs=outputs,
                name=value_name(outputs[0]),
            )
        )

    def typed(self, name: str, dtype: ir.DataType, shape: Sequence[int | str | None]) -> str:
        """State the type and shape of a value, as outputs of a graph must."""
        value = self.value(name)
        value.type = ir.TensorType(dtype)
        value.shape = ir.Shape(shape)
        return name

    def graph(self, outputs: Iterable[str]) -> ir.Graph:
        """Finish: return the graph with the given outputs."""
        return ir.Graph(
            self.inputs,
            [self.value(name) for name in outputs],
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            # A branch has the opset of the model that it lies in.
            opset_imports={"": self.opset} if self.outer is None else None,
            name=self.name,
        )

    def model(
        self, outputs: Iterable[str], *, ir_version: int, metadata: Mapping[str, str]
    ) -> ir.Model:
        """Finish: return a model; metadata is written in sorted order."""
        return ir.Model(
            self.graph(outputs),
            ir_version=ir_version,
            producer_name=PRODUCER,
            metadata_props=dict(sorted(metadata.items())),
        )

    def _define(self, value: ir.Value) -> ir.Value:
        name = value_name(value)
        if name and name in self._values:
            raise LinkError(f"graph {self.name!r} defines {name!r} twice", fix="split it again")
        if name:
            self._values[name] = value
        return value


def value_name(value: ir.Value) -> str:
    """Return a value's name, empty for an output that nobody reads."""
    return value.name or ""


def input_names(node: ir.Node) -> list[str]:
    """Return the names a node reads; optional inputs that are left out have none."""
    return [value_name(v) for v in node.inputs if v is not None]


def region(nodes: Iterable[ir.Node], targets: Iterable[str], stops: Iterable[str]) -> list[ir.Node]:
    """Return the nodes that ``targets`` need, walking back no further than ``stops``, in order.

    Requires ``nodes`` in topological order: then one pass from the end sees every reader of a value
    before the node that makes it.
    """
    needed, stopped = set(targets), set(stops)
    nodes_inside: list[ir.Node] = []
    for node in reversed(list(nodes)):
        if any(value_name(v) in needed and value_name(v) not in stopped for v in node.outputs):
            nodes_inside.append(node)
            needed.update(input_names(node))
    return nodes_inside[::-1]

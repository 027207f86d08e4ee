"""Half precision in the graph: the frozen backbone in fp16, the domain in fp32.

Rules of this file: a pass over a linked graph or a segment of ``staged``. It states a type for
every value, as strongly typed networks need it. It returns a new model and leaves its argument
alone. It moves no node into or out of a branch, except for casts. It decides no range of int8
(:mod:`toolchain.export.emit.int8`).

Why only the backbone is reduced: nearly all arithmetic and all large tensors are there. A domain in
fp32 has one slots file for every precision. And a gate that is decided in fp32 is in the same state
on every device, unless its block's input itself has moved. So:

* ``image``, slots, ``adaptor.s``, ``gate.s``, ``gates``, ``features`` and ``logits`` are fp32;
* the maps ``in.s``, ``block.s`` and ``out.s`` are fp16 wherever they cross between segments;
* the adaptor's pool reads the fp16 map, and a cast makes fp32 of its small answer (of the block's
  input itself, where the adaptor has no pool or takes a mean). The correction is cast to fp16 on
  its coarse grid, once for both branches, before it is resized and added;
* norms, softmax, reductions, powers and roots are fp32, and so is arithmetic with their statistics.
  Squares overflow in fp16 from 256 on, and TensorRT's parser itself warns of LayerNorm in fp16
  ("Improving Model Accuracy" in NVIDIA's documentation says to give such layers a wider type).
"""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir

from toolchain.core.errors import PrecisionError
from toolchain.export.emit.owners import is_domain, loaded, stated
from toolchain.export.emit.rewrite import branches

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
SUFFIX = {FLOAT: "fp32", HALF: "fp16"}
# Names as linking gives them: maps, and a join's result with the steps before it. In a branch, the
# branch's name stands in front.
_MAP = re.compile(r"(in|block|out)\.[^/]+")
_JOIN = re.compile(r"([^/]+/(then|else)/)?out\.[^/]+(/(up|nhwc|nlc))?")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Always fp32; this file's docstring says why.
_WIDE = _words(
    "LayerNormalization InstanceNormalization GroupNormalization BatchNormalization LpNormalization"
    " MeanVarianceNormalization RMSNormalization Softmax LogSoftmax GlobalAveragePool"
    " ReduceMean ReduceSum ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum ReduceLogSumExp"
    " ReduceProd Pow Sqrt Reciprocal Exp Log CumSum"
)
_REDUCE = "Reduce"
# These copy numbers. So they keep the type of what they read, and no cast is needed for them.
_MOVES = _words(
    "Identity Reshape Flatten Transpose Squeeze Unsqueeze Slice Split Concat Gather Expand Pad"
    " Tile Dropout"
)
_POINTWISE = _words(
    "Add Sub Mul Div Neg Abs Relu Sigmoid Tanh Clip Min Max Sum Mean Erf HardSigmoid HardSwish"
    " LeakyRelu Elu Selu Celu Gelu Mish Softplus Softsign PRelu Where Equal Greater Less"
    " GreaterOrEqual LessOrEqual Sqrt Reciprocal Pow Exp Log"
)
_POOLS = frozenset(("AveragePool", "MaxPool"))


def to_fp16(model: ir.Model) -> ir.Model:
    """Return ``model`` with its frozen part in fp16 and casts where the two types meet.

    ``model``: fp32, tensors in memory. Raises PrecisionError naming a frozen tensor that fp16 does
    not hold (beyond 65504, or wholly flushed to zero), or an operator that has no rule.
    """
    result = loaded(model)
    _Halving(result).run()
    return stated(result)


class _Halving:
    """One run over a model.

    ``_casts``: the casts so far, by graph, value and type. ``_twins``: frozen constants and their
    fp16 copies. ``_statistics``: values that come from a reduction; arithmetic with them is fp32.
    ``_scopes``: the graph at work and those around it, the outermost first.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.opset = model.graph.opset_imports[""]
        self._casts: dict[tuple[int, int, ir.DataType], ir.Value] = {}
        self._twins: dict[int, tuple[ir.Value, ir.Value]] = {}
        self._statistics: set[int] = set()
        self._scopes: list[ir.Graph] = []

    def run(self) -> None:
        """Rewrite the model in place."""
        graph = self.model.graph
        for value in graph.inputs:
            if value.dtype == FLOAT and _MAP.fullmatch(value.name or ""):
                value.dtype = HALF
        self._nodes(graph)
        for at, value in enumerate(graph.outputs):
            kind = HALF if _MAP.fullmatch(value.name or "") else FLOAT
            self._output(graph, at, kind)
        self._settle()

    def _nodes(self, graph: ir.Graph) -> None:
        self._scopes.append(graph)
        for node in tuple(graph):
            if any(branches(node)):
                self._conditional(node)
            else:
                self._node(node)
        self._scopes.pop()

    def _node(self, node: ir.Node) -> None:
        variables = self._variables(node)
        floats = [
            at
            for at, value in enumerate(node.inputs)
            if value is not None and value.dtype in SUFFIX and variables[at]
        ]
        # Only inputs whose type the operator leaves open can change. A Cast says its type itself.
        if not floats or node.op_type == "Cast":
            return
        kind = self._kind(node, [node.inputs[at] for at in floats])
        for at in floats:
            node.replace_input_with(at, self._as(_input(node, at), kind, node))
        # An output changes only with an input of the same type variable; a flag or an index stays.
        converted = {variables[at] for at in floats}
        schema = self._schema(node)
        for at, value in enumerate(node.outputs):
            # The last output of a schema may stand for any number of outputs (Split).
            place = schema.outputs[min(at, len(schema.outputs) - 1)]
            if value.dtype == FLOAT and place.type_str in converted:
                value.dtype = kind

    def _kind(self, node: ir.Node, inputs: list[ir.Value | None]) -> ir.DataType:
        """The type that a node computes in; ``inputs``: its float inputs."""
        # Constants do not count: they exist in both types, and follow what is computed.
        computed = [v for v in inputs if v is not None and v.const_value is None]
        wide = bool(computed) and all(v.dtype == FLOAT for v in computed)
        measured = [v for v in computed if id(v) in self._statistics]
        op = node.op_type
        # What is computed from statistics alone is a statistic as well: var + eps, then its root.
        if op.startswith(_REDUCE) or (op in _POINTWISE and len(measured) == len(computed) > 0):
            self._statistics.update(id(value) for value in node.outputs)
        # The order of the rules counts. The join comes first: it works on whole maps, which are
        # fp16 wherever they cross between segments.
        if any(_JOIN.fullmatch(value.name or "") for value in node.outputs):
            return HALF
        if op in _WIDE or op.startswith(_REDUCE) or not self._has_half(node):
            return FLOAT
        if is_domain(node):
            # The domain's pool reads the fp16 map, and only its small answer is cast. Then all is
            # fp32.
            return FLOAT if wide or op not in _MOVES | _POOLS else HALF
        if op in _POINTWISE and measured:
            return FLOAT
        # Behind an fp32 value, cheap operators stay in fp32. The next product returns to fp16,
        # because most of the arithmetic is there.
        return FLOAT if wide and op in _POINTWISE | _MOVES else HALF

    def _conditional(self, node: ir.Node) -> None:
        if node.op_type != "If":
            raise PrecisionError(
                f"node {node.name!r}: expected If as the only operator with graphs inside, got "
                f"{node.op_type}",
                fix="leave that block out of blocks, or stay in fp32",
            )
        inner = [graph for _, graph in branches(node)]
        for value in _corrections(inner):
            self._as(value, HALF, node)
        for branch in inner:
            self._nodes(branch)
        for at, value in enumerate(node.outputs):
            # TensorRT wants one data type from both branches, so one fp16 result makes both fp16.
            kinds = {branch.outputs[at].dtype for branch in inner}
            if kinds <= SUFFIX.keys():
                kind = HALF if HALF in kinds else FLOAT
                value.dtype = kind
                for branch in inner:
                    self._output(branch, at, kind)

    def _output(self, graph: ir.Graph, at: int, kind: ir.DataType) -> None:
        """Cast an output of a graph at its end; the name stays on what the graph gives."""
        value = graph.outputs[at]
        if value.dtype not in SUFFIX or value.dtype == kind:
            return
        name, was = value.name, value.dtype
        result = ir.Value(name=name, type=ir.TensorType(kind), shape=value.shape)
        value.name = f"{name}/{SUFFIX[was]}"
        graph.append(_cast(value, result, kind))
        graph.outputs[at] = result

    def _as(self, value: ir.Value, kind: ir.DataType, user: ir.Node) -> ir.Value:
        if value.dtype == kind:
            return value
        if value.is_initializer() and not value.is_graph_input():
            return self._twin(value)
        # A cast of a graph around can be read in here; one in another branch cannot.
        for scope in self._scopes:
            cast = self._casts.get((id(scope), id(value), kind))
            if cast is not None:
                return cast
        graph = self._scopes[-1]
        prefix = "" if graph is self.model.graph else f"{graph.name}/"
        result = ir.Value(name=f"{prefix}{value.name}/{SUFFIX[kind]}")
        result.type, result.shape = ir.TensorType(kind), value.shape
        graph.insert_before(user, _cast(value, result, kind))
        self._casts[id(graph), id(value), kind] = result
        return result

    def _twin(self, value: ir.Value) -> ir.Value:
        """A frozen constant in fp16; the fp32 one stays until it is known who else reads it."""
        if id(value) not in self._twins:
            assert value.const_value is not None
            assert value.graph is not None
            name = f"{value.name}/fp16"
            tensor = ir.Tensor(halved(value.name or "", value.const_value.numpy()), name=name)
            twin = ir.Value(name=name, type=ir.TensorType(HALF), shape=value.shape)
            twin.const_value = tensor
            value.graph.register_initializer(twin)
            self._twins[id(value)] = (value, twin)
        return self._twins[id(value)][1]

    def _settle(self) -> None:
        """Let an fp16 constant whose fp32 original nobody reads have its name."""
        for value, twin in self._twins.values():
            graph, name = value.graph, value.name
            if value.uses() or value.is_graph_output() or graph is None or name is None:
                continue
            assert twin.name is not None
            del graph.initializers[name], graph.initializers[twin.name]
            twin.name = name
            if twin.const_value is not None:
                twin.const_value.name = name
            graph.register_initializer(twin)

    def _schema(self, node: ir.Node) -> onnx.defs.OpSchema:
        try:
            return onnx.defs.get_schema(node.op_type, self.opset, node.domain)
        except onnx.defs.SchemaError as err:
            raise PrecisionError(
                f"node {node.name!r}: expected an operator of ONNX {self.opset}, got "
                f"{node.domain}.{node.op_type}",
                fix="leave that block out of blocks, or stay in fp32",
            ) from err

    def _variables(self, node: ir.Node) -> list[str]:
        """The type variable of each input, empty where its type is fixed (Resize's scales)."""
        schema = self._schema(node)
        free = {constraint.type_param_str for constraint in schema.type_constraints}
        # The last input of a schema may stand for any number of inputs (Concat, Sum).
        places = [schema.inputs[min(i, len(schema.inputs) - 1)] for i in range(len(node.inputs))]
        return [place.type_str if place.type_str in free else "" for place in places]

    def _has_half(self, node: ir.Node) -> bool:
        """Whether the operator is defined for fp16 at all."""
        schema = self._schema(node)
        used = {place.type_str for place in schema.inputs}
        return all(
            "tensor(float16)" in c.allowed_type_strs
            for c in schema.type_constraints
            if c.type_param_str in used and "tensor(float)" in c.allowed_type_strs
        )


def halved(
    name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    """Return a frozen tensor in fp16 (IEEE 754 binary16: at most 65504, at least 6e-8).

    Raises PrecisionError where a value overflows, or where all of a tensor becomes zero.
    """
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    largest = float(np.abs(array).max(initial=0))
    if not np.isfinite(half).all():
        raise PrecisionError(
            f"tensor {name!r}: expected values up to 65504, which fp16 holds, got {largest:.6g}",
            fix="build this backbone in fp32 or int8",
        )
    if largest and not half.any():
        raise PrecisionError(
            f"tensor {name!r}: expected values that fp16 tells from zero, the largest is "
            f"{largest:.6g}",
            fix="build this backbone in fp32 or int8",
        )
    return half


def _corrections(inner: list[ir.Graph]) -> list[ir.Value]:
    """The corrections that branches read: cast once outside, as every branch needs them."""
    read = [v for graph in inner for node in graph for v in node.inputs if v is not None]
    corrections = {
        v.name: v for v in read if v.dtype == FLOAT and (v.name or "").startswith("adaptor.")
    }
    return [value for name, value in sorted(corrections.items()) if name]


def _cast(value: ir.Value, result: ir.Value, kind: ir.DataType) -> ir.Node:
    to = ir.convenience.convert_attribute("to", int(kind))
    return ir.Node("", "Cast", [value], [to], outputs=[result], name=result.name)


def _input(node: ir.Node, at: int) -> ir.Value:
    value = node.inputs[at]
    assert value is not None
    return value

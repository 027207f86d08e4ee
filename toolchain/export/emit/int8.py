"""Eight bits in the graph: explicit Q/DQ around the frozen convolutions and matrix products.

Rules of this file: a pass over a linked graph or a segment of ``staged``, branches included. It
returns a new model and decides no range; :mod:`toolchain.export.emit.calibrate` does that. Only the
frozen products become int8. The domain, additions, norms and pools stay fp32, for the reasons that
:mod:`toolchain.export.emit.fp16` gives.

Form: ``QuantizeLinear`` and ``DequantizeLinear`` of opset 13, int8, symmetric. The zero point is
there and is zero. An activation has one scale, a weight one per output channel. The weight stands
in the graph as an fp32 constant, which a ``QuantizeLinear`` quantises there. The parsers of
TensorRT 8.2 to 8.6 want a float constant before Q and ask for all three inputs (onnx-tensorrt
``docs/operators.md`` of those branches, ``QuantDequantLinearHelper``). Later parsers take float
weights as well as int8 weights ("Explicit Quantization", Quantized Weights, in NVIDIA's
documentation). This costs bytes of the ONNX file, and none of the plan. onnxruntime's
``quantize_static`` does not help here: it leaves branches alone and does not say so.

The products that read the picture become int8 too. Measured on cars, digits, chirps and cells:
leaving them out changes the error of the logits from 2.2, 2.1, 2.0 and 2.1 per cent of their range
to 2.0, 2.0, 2.2 and 2.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from toolchain.core.errors import PrecisionError
from toolchain.export.emit.owners import is_domain, loaded, stated, walk

# Symmetric, as TensorRT takes no zero point but 0: the largest magnitude becomes 127.
LEVELS = 127
# Opset 13 gave Q and DQ the attribute ``axis``.
LOWEST_OPSET = 13


@dataclass(frozen=True, slots=True)
class Operands:
    """Which inputs of a frozen product are activation and weight; the weight's output axis."""

    activation: int
    weight: int
    axis: int


def frozen(node: ir.Node) -> Operands | None:
    """Return the operands of a frozen Conv, Gemm or MatMul, None for every other node.

    A product is frozen if it is not the domain's and one operand is a constant of two dimensions or
    more. The product of two activations, as in attention, is not.
    """
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.domain or is_domain(node):
        return None
    ranks = [_constant_rank(value) for value in node.inputs[:2]]
    if ranks[1] >= 2 and ranks[0] < 0:
        return Operands(0, 1, _axis(node, ranks[1]))
    if node.op_type != "Conv" and ranks[0] >= 2 and ranks[1] < 0:
        # The weight may stand first. Then its rows are the output channels, or its columns if Gemm
        # transposes it.
        flipped = node.op_type == "Gemm" and bool(node.attributes.get_int("transA", 0))
        return Operands(1, 0, 1 if flipped else ranks[0] - 2)
    return None


def _constant_rank(value: ir.Value | None) -> int:
    """A constant's number of dimensions, -1 for what is computed or fed."""
    constant = None if value is None or value.is_graph_input() else value.const_value
    return -1 if constant is None else len(constant.shape)


def _axis(node: ir.Node, rank: int) -> int:
    # A Conv's kernel is [O, C/G, ...]. A product's second operand is [K, N]; transposed, [N, K].
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return rank - 1


def to_int8(model: ir.Model, ranges: Mapping[str, float]) -> ir.Model:
    """Return ``model`` with Q/DQ at every frozen product.

    ``model``: fp32, opset 13 or above, tensors in memory. ``ranges``: largest magnitude of an
    activation by its name. Raises PrecisionError naming an activation without a usable range, or a
    weight that is not finite.
    """
    opset = model.graph.opset_imports[""]
    if opset < LOWEST_OPSET:
        raise PrecisionError(
            f"expected opset {LOWEST_OPSET} or above for scales per channel, got {opset}",
            fix="quantise before lowering the opset, or build in fp16",
        )
    result = loaded(model)
    pairs = _Pairs(ranges, result.graph)
    for graph, node in walk(result):
        operands = frozen(node)
        if operands is not None:
            pairs.wrap(graph, node, operands)
    return stated(result)


class _Pairs:
    """Adds Q/DQ pairs. In one graph an activation has one pair, however many products read it."""

    def __init__(self, ranges: Mapping[str, float], main: ir.Graph) -> None:
        self._ranges = ranges
        self._main = main
        self._made: dict[tuple[int, int], ir.Value] = {}

    def wrap(self, graph: ir.Graph, node: ir.Node, operands: Operands) -> None:
        """Put a pair before the activation and the weight of ``node``."""
        value = _input(node, operands.activation)
        scale = np.array(self._scale(value.name or "", node), np.float32)
        node.replace_input_with(operands.activation, self._pair(graph, node, value, scale, None))
        weight = _input(node, operands.weight)
        assert weight.const_value is not None
        scales = channel_scales(weight.name or "", weight.const_value.numpy(), operands.axis)
        pair = self._pair(graph, node, weight, scales, operands.axis)
        node.replace_input_with(operands.weight, pair)

    def _scale(self, name: str, node: ir.Node) -> float:
        limit = self._ranges.get(name, float("nan"))
        # A device would flush a scale below the smallest normal float32 to zero.
        if not np.isfinite(limit) or limit / LEVELS < np.finfo(np.float32).tiny:
            got = limit if name in self._ranges else "none"
            raise PrecisionError(
                f"node {node.name!r} reads {name!r}: expected a range above zero, got {got}",
                fix="calibrate with the halves that the graph was linked from",
            )
        return limit / LEVELS

    def _pair(
        self,
        graph: ir.Graph,
        node: ir.Node,
        value: ir.Value,
        scale: npt.NDArray[np.float32],
        axis: int | None,
    ) -> ir.Value:
        # Per graph: a branch must not read a pair of the outer graph, which would run always.
        key = (id(graph), id(value))
        if key not in self._made:
            prefix = "" if graph is self._main else f"{graph.name}/"
            base = f"{prefix}{value.name}"
            operands = [
                _constant(graph, f"{base}/scale", scale),
                _constant(graph, f"{base}/zero", np.zeros(scale.shape, np.int8)),
            ]
            # For one scale the attribute means nothing, but some parsers check it against the rank.
            axes = {} if axis is None else {"axis": axis}
            small = _node("QuantizeLinear", [value, *operands], f"{base}/int8", axes)
            again = _node("DequantizeLinear", [small.outputs[0], *operands], f"{base}/fp32", axes)
            graph.insert_before(node, [small, again])
            self._made[key] = again.outputs[0]
        return self._made[key]


def channel_scales(name: str, weight: npt.NDArray[Any], axis: int) -> npt.NDArray[np.float32]:
    """Return the scale of each output channel, float32 ``[weight.shape[axis]]``.

    A channel of zeros gets the scale 1, as zero is exact at any scale. Raises PrecisionError for a
    weight that is not finite.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others).astype(np.float32)
    if not np.isfinite(largest).all():
        raise PrecisionError(
            f"tensor {name!r}: expected finite values, got some that are not",
            fix="export again from weights that are finite",
        )
    scales: npt.NDArray[np.float32] = (largest / np.float32(LEVELS)).astype(np.float32)
    return np.where(scales < np.finfo(np.float32).tiny, np.float32(1), scales)


def _input(node: ir.Node, at: int) -> ir.Value:
    value = node.inputs[at]
    assert value is not None
    return value


def _constant(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    tensor = ir.Tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    value.const_value = tensor
    graph.register_initializer(value)
    return value


def _node(op: str, inputs: list[ir.Value], output: str, attributes: Mapping[str, int]) -> ir.Node:
    attrs = [ir.convenience.convert_attribute(key, value) for key, value in attributes.items()]
    return ir.Node("", op, inputs, attrs, outputs=[ir.Value(name=output)], name=output)

"""Eight bits in the graph: explicit Q/DQ around the frozen convolutions and matrix products.

Rules of this file: a pass over a linked graph or a segment of ``staged``, branches included. It
returns a new model and decides no range; :mod:`toolchain.export.emit.calibrate` does that. Only the
frozen products become int8. The domain, additions, norms and pools stay fp32, for the reasons that
:mod:`toolchain.export.emit.fp16` gives.

Form: ``QuantizeLinear`` and ``DequantizeLinear`` of opset 13, int8, symmetric. The zero point is
there and is zero. An activation has one scale, a weight one per output channel. Ranges are signed,
so the join behind a ReLU keeps the sums that an adaptor makes negative. The weight stands in the
graph as an fp32 constant, which a ``QuantizeLinear`` quantises there; it was rounded beforehand
(:func:`rounded_weight`), so the operator finds whole steps. The parsers of
TensorRT 8.2 to 8.6 want a float constant before Q and ask for all three inputs (onnx-tensorrt
``docs/operators.md`` of those branches, ``QuantDequantLinearHelper``). Later parsers take float
weights as well as int8 weights ("Explicit Quantization", Quantized Weights, in NVIDIA's
documentation). This costs bytes of the ONNX file, and none of the plan. onnxruntime's
``quantize_static`` does not help here: it leaves branches alone and does not say so.

The products that read the picture become int8 too. Measured on cars, digits, chirps and cells:
leaving them out changes the error of the logits from 2.2, 2.1, 2.0 and 2.1 per cent of their range
to 2.0, 2.0, 2.2 and 2.5.

Rounding weights so that their errors cancel, against rounding to the nearest step, pictures that
calibrated nothing: EfficientNet-Lite0 on cells at 96 px, root mean square error of the logits 1.06
against 1.22 per cent of their range, largest 4.5 against 5.5, of the weights alone 4.1 against 7.4;
resnet20 on the four samples the same within chance (4 other classes against 5, 6 other gates
against 7, of 1,600).
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
        self._rounded: set[int] = set()

    def wrap(self, graph: ir.Graph, node: ir.Node, operands: Operands) -> None:
        """Put a pair before the activation and the weight of ``node``."""
        value = _input(node, operands.activation)
        scale = np.array(self._scale(value.name or "", node), np.float32)
        node.replace_input_with(operands.activation, self._pair(graph, node, value, scale, None))
        weight = _input(node, operands.weight)
        assert weight.const_value is not None
        array = weight.const_value.numpy()
        scales = channel_scales(weight.name or "", array, operands.axis)
        if id(weight) not in self._rounded:
            # The same tensor under the same name: rounding again would change nothing.
            tensor = ir.Tensor(rounded_weight(array, scales, operands.axis), name=weight.name)
            weight.const_value = tensor
            self._rounded.add(id(weight))
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


def rounded_weight(
    weight: npt.NDArray[Any], scales: npt.NDArray[np.float32], axis: int
) -> npt.NDArray[np.float32]:
    """Return ``weight`` in whole steps of its channels' ``scales``, its errors made to cancel.

    ``weight``: float32 of any rank, the output channels at ``axis``; ``scales``: one per channel.

    Rounded to the nearest step, the errors of a kernel add up to a shift of its output wherever the
    input has a mean, as it has after every ReLU; a depthwise kernel has few weights to average
    over. So a few weights, those nearest to the middle between two steps, are rounded the other
    way, until the errors of each kernel, and then those of each output channel, add up to half a
    step at most. It needs no pictures. Source: Guo et al., "SQuant: on-the-fly data-free
    quantization via diagonal Hessian approximation" (ICLR 2022).
    """
    moved = np.moveaxis(weight, axis, 0)
    # Output channel, input channel, place in the kernel.
    exact = moved.reshape(*moved.shape[:2], -1).astype(np.float64)
    # In float64, so that no sum lies near a half by rounding alone: every machine flips the same.
    steps = exact / scales.astype(np.float64).reshape(-1, 1, 1)
    whole = np.rint(steps)
    _flip(whole, steps)
    # One weight of each kernel for the sum over kernels: that which costs least.
    whole_sum, steps_sum = whole.sum(axis=2), steps.sum(axis=2)
    kernels = whole_sum.copy()
    _flip(kernels[:, None], steps_sum[:, None])
    change = kernels - whole_sum
    errors = (whole - steps) * -np.sign(change)[:, :, None]
    at = errors.argmax(axis=2)[:, :, None]
    np.put_along_axis(whole, at, np.take_along_axis(whole, at, 2) + change[:, :, None], 2)
    whole = np.clip(whole, -LEVELS, LEVELS) * scales.reshape(-1, 1, 1)
    result: npt.NDArray[np.float32] = np.moveaxis(whole.reshape(moved.shape), 0, axis)
    return np.ascontiguousarray(result, np.float32)


def _flip(whole: npt.NDArray[Any], steps: npt.NDArray[Any]) -> None:
    """Round some of ``whole`` the other way, in place, until the last axis's errors cancel.

    Those go whose error is largest and of the sum's sign.
    """
    errors = whole - steps
    total = errors.sum(axis=-1, keepdims=True)
    sign = np.sign(total)
    # The largest first; stable, so that equal errors fall in one order everywhere.
    order = np.argsort(-errors * sign, axis=-1, kind="stable")
    rank = np.argsort(order, axis=-1, kind="stable")
    whole -= sign * ((rank < np.rint(np.abs(total))) & (errors * sign > 0))


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

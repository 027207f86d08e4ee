"""One rule for each operator whose form changed between opset 13 and 20: its form before.

Rules of this file: a rule changes one node in place and returns "". If the older opset has no form
for it, the rule leaves the node alone and returns why. :mod:`toolchain.export.emit.dialect` calls a
rule only where the operator's schema differs between the two opsets, and infers shapes before. The
definitions are those of ONNX's docs/Changelog.md and docs/Operators.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from toolchain.export.emit.rewrite import Draft, constant, dims, rewritten

Lowering = Callable[[ir.Node], str]
_IDEMPOTENT = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd")


def _without(node: ir.Node, *names: str) -> dict[str, ir.Attr]:
    return {name: attr for name, attr in node.attributes.items() if name not in names}


def _rank(value: ir.Value | None) -> int | None:
    shape = dims(value)
    return None if shape is None else len(shape)


def _floats(value: ir.Value | None) -> Any:
    """The numpy type in which scalars beside ``value`` are written."""
    half = value is not None and value.dtype == ir.DataType.FLOAT16
    return np.float16 if half else np.float32


def _reduce(node: ir.Node) -> str:
    """Opset 18 moved ``axes`` from an attribute to an input (ReduceSum did at 13)."""
    axes_input = node.inputs[1] if len(node.inputs) > 1 else None
    axes = constant(axes_input)
    if axes_input is not None and axes is None:
        return "its axes are computed at run time"
    attributes: dict[str, Any] = _without(node, "noop_with_empty_axes")
    if axes is not None and axes.size:
        attributes["axes"] = [int(axis) for axis in axes]
    # Without axes both forms reduce over all of them, unless this attribute says over none.
    elif node.attributes.get_int("noop_with_empty_axes", 0):
        # Without axes a sum of squares still squares each value. Only these four leave their input
        # as it is, so only they become an Identity.
        if node.op_type not in _IDEMPOTENT:
            return "it reduces over no axes"
        draft = Draft(node)
        draft.replace(draft.node("Identity", node.inputs[:1]))
        return ""
    rewritten(node, attributes, node.inputs[:1])
    return ""


def _reshape(node: ir.Node) -> str:
    """Opset 14 added ``allowzero``. It changes nothing unless the target shape has a 0."""
    target = constant(node.inputs[1])
    literal = node.attributes.get_int("allowzero", 0)
    if literal and (target is None or 0 in target):
        return "allowzero is 1 and its target may hold a 0"
    rewritten(node, _without(node, "allowzero"), node.inputs)
    return ""


def _resize(node: ir.Node) -> str:
    """Opset 18 added ``antialias``, ``axes`` and an aspect-ratio policy; 19 added one more grid."""
    attributes = node.attributes
    rank = _rank(node.inputs[0])
    axes = attributes.get_ints("axes", ())
    if attributes.get_int("antialias", 0):
        return "it resizes with antialias"
    if attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "it keeps the aspect ratio"
    # Naming every axis in order says no more than naming none.
    if axes and list(axes) != list(range(rank or 0)):
        return f"it names the axes {list(axes)}"
    if attributes.get_string("coordinate_transformation_mode", "") == "half_pixel_symmetric":
        return "it uses half_pixel_symmetric"
    rest = _without(node, "antialias", "axes", "keep_aspect_ratio_policy")
    rewritten(node, rest, node.inputs)
    return ""


def _split(node: ir.Node) -> str:
    """Opset 18 added ``num_outputs``. Before, the parts are equal, or their sizes are an input."""
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        rewritten(node, _without(node, "num_outputs"), node.inputs)
        return ""
    shape = dims(node.inputs[0])
    axis = node.attributes.get_int("axis", 0)
    side = None if shape is None else shape[axis]
    if side is None:
        return "the size of the axis that it splits is not known"
    count = len(node.outputs)
    # As opset 18 defines it: all parts but the last are equal, and the last one may be smaller.
    part = math.ceil(side / count)
    sizes = [min(part, side - index * part) for index in range(count)]
    # Five rows in four parts would be 2, 2, 1 and -1: the older form has no such part.
    if sizes[-1] < 1:
        return f"it splits {side} rows in {count} parts"
    lengths = Draft(node).constant(sizes, np.int64)
    rewritten(node, _without(node, "num_outputs"), [node.inputs[0], lengths])
    return ""


def _pad(node: ir.Node) -> str:
    """Opset 18 added the input ``axes``, 19 the mode ``wrap``."""
    if node.attributes.get_string("mode", "constant") == "wrap":
        return "it pads by wrapping round"
    # Without axes the older form is the same, so the node stays as it is.
    if len(node.inputs) < 4 or node.inputs[3] is None:
        return ""
    axes, pads, rank = constant(node.inputs[3]), constant(node.inputs[1]), _rank(node.inputs[0])
    if axes is None or pads is None or rank is None:
        return "its axes, its amounts or the rank of its input are not constant"
    # Before, amounts stand for every axis: all begins, then all ends.
    full = np.zeros((2, rank), np.int64)
    full[:, [int(axis) % rank for axis in axes]] = pads.reshape(2, -1)
    amounts = Draft(node).constant(full.reshape(-1), np.int64)
    rewritten(node, dict(node.attributes), [node.inputs[0], amounts, *node.inputs[2:3]])
    return ""


def _batch_norm(node: ir.Node) -> str:
    """Opset 14 added ``training_mode``. Before, a single output meant inference."""
    if node.attributes.get_int("training_mode", 0) or len(node.outputs) != 1:
        return "it is in training mode"
    rewritten(node, _without(node, "training_mode"), node.inputs)
    return ""


def _shape(node: ir.Node) -> str:
    """Opset 15 added ``start`` and ``end``. Before, a Slice takes part of the shape."""
    # ``end`` has no default: left out, it means the last axis. No tensor has 2^31 axes.
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", 2**31)
    if (start, end) == (0, 2**31):
        rewritten(node, {}, node.inputs)
        return ""
    draft = Draft(node)
    whole = draft.node("Shape", node.inputs)
    bounds = [draft.constant([place], np.int64) for place in (start, end)]
    # Slice reads negative places and places beyond the end as ``start`` and ``end`` are read.
    draft.replace(draft.node("Slice", [whole, *bounds]))
    return ""


def _layer_norm(node: ir.Node) -> str:
    """Opset 17 added it. Before: mean and variance over the last axes, then scale and shift."""
    if len([value for value in node.outputs if value.uses() or value.is_graph_output()]) > 1:
        return "its mean or deviation is read as well"
    rank = _rank(node.inputs[0])
    axis = node.attributes.get_int("axis", -1)
    if rank is None:
        return "the rank of its input is not known"
    # Negative axes, from ``axis`` to the last one.
    axes = list(range(axis - rank if axis >= 0 else axis, 0))
    draft, source = Draft(node), node.inputs[0]
    half = source is not None and source.dtype == ir.DataType.FLOAT16
    # stash_type is 1 by default: the operator takes mean and variance in fp32.
    stashed = half and node.attributes.get_int("stash_type", 1) == 1
    if stashed:
        source = draft.node("Cast", [source], to=ir.DataType.FLOAT.value)
    epsilon = draft.constant(
        node.attributes.get_float("epsilon", 1e-5),
        np.float32 if stashed else _floats(node.inputs[0]),
    )
    result = _normalised(draft, source, axes, epsilon)
    if stashed:
        result = draft.node("Cast", [result], to=ir.DataType.FLOAT16.value)
    # ONNX defines the operator in this order: it casts back before scale and shift.
    result = draft.node("Mul", [result, node.inputs[1]])
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        result = draft.node("Add", [result, node.inputs[2]])
    _take_over(draft, node, result)
    return ""


def _take_over(draft: Draft, node: ir.Node, result: ir.Value) -> None:
    """Replace a node; its further outputs, which nobody reads, go."""
    node.resize_outputs(1)
    draft.replace(result)


def _normalised(
    draft: Draft, source: ir.Value | None, axes: list[int], epsilon: ir.Value
) -> ir.Value:
    mean = draft.node("ReduceMean", [source], axes=axes, keepdims=1)
    centred = draft.node("Sub", [source, mean])
    square = draft.node("Mul", [centred, centred])
    variance = draft.node("ReduceMean", [square], axes=axes, keepdims=1)
    deviation = draft.node("Sqrt", [draft.node("Add", [variance, epsilon])])
    return draft.node("Div", [centred, deviation])


def _group_norm(node: ir.Node) -> str:
    """Opset 18 added it. Before: InstanceNormalization over groups, then scale and shift.

    In opset 18 scale and shift are per group, from opset 21 on per channel. Their length tells
    which.
    """
    shape, length = dims(node.inputs[0]), dims(node.inputs[1])
    groups = node.attributes.get_int("num_groups", 1)
    if shape is None or None in shape[1:] or not length or length[0] is None:
        return "the shape of its input is not known"
    channels, sides = shape[1] or 1, [side or 1 for side in shape[2:]]
    draft = Draft(node)
    # One row per group, [N, groups, rest], which an InstanceNormalization normalises row by row.
    flat = draft.node("Reshape", [node.inputs[0], draft.constant([0, groups, -1], np.int64)])
    floats = _floats(node.inputs[0])
    # Its own scale and shift would be one per row, which is one per group. They do nothing here.
    ones, zeros = (draft.constant(np.full(groups, fill), floats) for fill in (1, 0))
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    result = draft.node("InstanceNormalization", [flat, ones, zeros], epsilon=epsilon)
    # Then one row per scale: per group or per channel, [N, rows, rest].
    rows = length[0]
    rest = math.prod(sides) * channels // rows
    result = draft.node("Reshape", [result, draft.constant([0, rows, rest], np.int64)])
    column = draft.constant([rows, 1], np.int64)
    scale, shift = (draft.node("Reshape", [value, column]) for value in node.inputs[1:3])
    result = draft.node("Add", [draft.node("Mul", [result, scale]), shift])
    target = draft.constant([0, channels, *sides], np.int64)
    draft.replace(draft.node("Reshape", [result, target]))
    return ""


def _hard_swish(node: ir.Node) -> str:
    """Opset 14 added it. Before: x * HardSigmoid(x) with a slope of 1/6."""
    draft = Draft(node)
    gate = draft.node("HardSigmoid", node.inputs, alpha=1 / 6, beta=0.5)
    draft.replace(draft.node("Mul", [node.inputs[0], gate]))
    return ""


def _mish(node: ir.Node) -> str:
    """Opset 18 added it. Before: x * tanh(softplus(x))."""
    draft = Draft(node)
    gate = draft.node("Tanh", [draft.node("Softplus", node.inputs)])
    draft.replace(draft.node("Mul", [node.inputs[0], gate]))
    return ""


def _gelu(node: ir.Node) -> str:
    """Opset 20 added it. Before: x/2 * (1 + erf(x / sqrt 2)), or its approximation by tanh."""
    source, draft, floats = node.inputs[0], Draft(node), _floats(node.inputs[0])
    half, one = (draft.constant(number, floats) for number in (0.5, 1.0))
    if node.attributes.get_string("approximate", "none") == "none":
        inner = draft.node("Div", [source, draft.constant(math.sqrt(2), floats)])
        inner = draft.node("Erf", [inner])
    else:
        cube = draft.node("Mul", [draft.node("Mul", [source, source]), source])
        cube = draft.node("Mul", [cube, draft.constant(0.044715, floats)])
        scale = draft.constant(math.sqrt(2 / math.pi), floats)
        inner = draft.node("Mul", [draft.node("Add", [source, cube]), scale])
        inner = draft.node("Tanh", [inner])
    share = draft.node("Mul", [half, draft.node("Add", [inner, one])])
    draft.replace(draft.node("Mul", [source, share]))
    return ""


def _pool(node: ir.Node) -> str:
    """Opset 19 added ``dilations`` to AveragePool."""
    if any(step != 1 for step in node.attributes.get_ints("dilations", ())):
        return "it pools with dilations"
    rewritten(node, _without(node, "dilations"), node.inputs)
    return ""


def _scatter(node: ir.Node) -> str:
    """Opset 16 added ``reduction``."""
    if node.attributes.get_string("reduction", "none") != "none":
        return "it reduces while it scatters"
    rewritten(node, _without(node, "reduction"), node.inputs)
    return ""


# Without Sum: ReduceSum takes its axes as an input since opset 13, the oldest that is written.
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

RULES: Mapping[str, Lowering] = {
    **{f"Reduce{kind}": _reduce for kind in _REDUCTIONS},
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Gelu": _gelu,
    "GroupNormalization": _group_norm,
    "HardSwish": _hard_swish,
    "LayerNormalization": _layer_norm,
    "Mish": _mish,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "Shape": _shape,
    "Split": _split,
}

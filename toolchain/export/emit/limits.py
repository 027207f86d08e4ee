"""Refuse on the workstation what a target's ONNX parser would refuse on the board.

Rules of this file: the tables are in :mod:`toolchain.device.boards.parsers`; this file compares
nodes with them. It reports all faults at once, each with node, module, limit, source, and what to
do. It changes no model. A model that passes may still be refused by a parser, for a reason that is
in no table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from toolchain.core.errors import ModelRefusedError
from toolchain.device.boards import parsers
from toolchain.device.boards.parsers import LATEST, Parser, Version
from toolchain.export.emit import lowering
from toolchain.export.emit.rewrite import (
    branches,
    conditionals,
    constant,
    copied,
    dims,
    infer,
    nodes,
    where,
)

_LETTERS: Mapping[ir.DataType, str] = {
    ir.DataType.FLOAT: "F",
    ir.DataType.FLOAT16: "F",
    ir.DataType.INT32: "I",
    ir.DataType.INT64: "I",
    ir.DataType.INT8: "Q",
    ir.DataType.BOOL: "B",
}
Breach = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Limit:
    """What parsers in [``since``, ``until``) ask of ``operators``; ``broken`` finds a breach."""

    operators: tuple[str, ...]
    rule: str
    instead: str
    broken: Callable[[ir.Node], bool]
    since: Version = (8, 2)
    until: Version = LATEST
    source: str = ""


def refuse_unsupported(model: ir.Model, tensorrt: str) -> None:
    """Compare every node with the limits of the parser in TensorRT ``tensorrt`` (``"10.3"``).

    Raises ModelRefusedError that lists every breach.
    """
    version, row = parsers.version_of(tensorrt), parsers.parser(tensorrt)
    typed = infer(copied(model))
    faults = list(_opset_faults(typed, row))
    for node in nodes(typed):
        faults += _node_faults(node, version)
    _refuse(faults, f"TensorRT {tensorrt} cannot read it ({dict(row.sources)['opset']})")


def refuse_branches(model: ir.Model) -> None:
    """Compare the two branches of every ``If``, by the strictest rule of any TensorRT.

    Results must have equal data types, equal and fully known shapes (8.2 to 10.10; from 10.11 on
    equal ranks are enough), and different names in the two branches (8.2, ``If`` importer). Raises
    ModelRefusedError that lists every breach by the name of the ``If``.
    """
    typed = infer(copied(model))
    faults = [fault for node in conditionals(typed) for fault in _branch_faults(node)]
    _refuse(faults, "TensorRT cannot join the branches")


def _refuse(faults: Sequence[Breach], what: str) -> None:
    if not faults:
        return
    lines = "\n  ".join(text for text, _ in faults)
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    ways = dict.fromkeys(instead for _, instead in faults)
    raise ModelRefusedError(f"{what}: {count}\n  {lines}", fix="; ".join(ways))


def _opset_faults(model: ir.Model, row: Parser) -> Iterator[Breach]:
    opset = model.graph.opset_imports.get("", 0)
    if opset > row.opset:
        text = f"the model: expected opset {row.opset} at most, got {opset}"
        yield text, f"lower it to opset {row.opset}"


def _node_faults(node: ir.Node, version: Version) -> Iterator[Breach]:
    table, operator = parsers.types(version), node.op_type
    newer = "choose a target with a newer TensorRT, or replace it in the backbone"
    since = parsers.SINCE.get(operator, (8, 2))
    if operator not in table or version < since or node.domain not in ("", "ai.onnx"):
        least = f"TensorRT {since[0]}.{since[1]} on" if version < since else "no TensorRT's list"
        # An operator that is in no table is refused: its other limits are not known either.
        yield f"{where(node)}: read from {least}", parsers.INSTEAD.get(operator, newer)
        return
    yield from _type_faults(node, table[operator], version)
    for limit in LIMITS:
        covered = operator in limit.operators and limit.since <= version < limit.until
        if covered and limit.broken(node):
            source = f" ({limit.source})" if limit.source else ""
            yield f"{where(node)}: {limit.rule}{source}", limit.instead


def _type_faults(node: ir.Node, letters: str, version: Version) -> Iterator[Breach]:
    # The tables' letters are the types of the first input. Where's first input is the condition.
    at = 1 if node.op_type == "Where" else 0
    value = node.inputs[at] if len(node.inputs) > at else None
    dtype = None if value is None else value.dtype
    if dtype is None or _letter(dtype, node.op_type, version) in letters:
        return
    yield (
        f"{where(node)}: {dtype.name} is none of the types that it takes ({_names(letters)})",
        "cast it before the node; double is never narrowed in silence",
    )


def _letter(dtype: ir.DataType, operator: str, version: Version) -> str:
    if dtype == ir.DataType.BFLOAT16 and version >= (10, 0):
        return "F"
    if dtype == ir.DataType.UINT8 and operator == "Cast" and version >= (8, 6):
        return "I"
    return _LETTERS.get(dtype, "-")


def _names(letters: str) -> str:
    names = {"F": "fp32, fp16", "I": "int32, int64", "Q": "int8", "B": "bool"}
    return ", ".join(names[letter] for letter in letters)


def _variable(*places: int) -> Callable[[ir.Node], bool]:
    """Whether one of these inputs is there and no constant."""

    def broken(node: ir.Node) -> bool:
        inputs = [node.inputs[at] for at in places if at < len(node.inputs)]
        return any(value is not None and constant(value) is None for value in inputs)

    return broken


def _fed(*places: int) -> Callable[[ir.Node], bool]:
    """As :func:`_variable`, but a constant behind Q/DQ counts as a constant, as weights do."""

    def broken(node: ir.Node) -> bool:
        inputs = [node.inputs[at] for at in places if at < len(node.inputs)]
        return any(value is not None and constant(_unquantised(value)) is None for value in inputs)

    return broken


def _unquantised(value: ir.Value) -> ir.Value:
    """Walk back over Q/DQ, which builders fuse into the convolution behind it."""
    maker = value.producer()
    while maker is not None and maker.op_type in ("QuantizeLinear", "DequantizeLinear"):
        source = maker.inputs[0]
        assert source is not None
        value, maker = source, source.producer()
    return value


def _spatial(node: ir.Node) -> bool:
    """Whether the input has other than two or three dimensions beside batch and channels."""
    shape = dims(node.inputs[0])
    return shape is not None and len(shape) not in (4, 5)


def _dilated(node: ir.Node) -> bool:
    return any(step != 1 for step in node.attributes.get_ints("dilations", ()))


def _second_output(node: ir.Node) -> bool:
    # An output that nobody reads costs nothing: the parser's limit is about those that are read.
    return any(value.uses() or value.is_graph_output() for value in node.outputs[1:])


def _zero_point(node: ir.Node) -> bool:
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    points = constant(node.inputs[2])
    # Nobody can show that a computed zero point is 0.
    return points is None or bool(points.astype("int64").any())


def _resize(node: ir.Node) -> bool:
    # Where an attribute is absent, ONNX's default counts.
    attribute = node.attributes.get_string
    policy = attribute("keep_aspect_ratio_policy", "stretch")
    return (
        attribute("mode", "nearest") not in parsers.RESIZE_MODES
        or attribute("coordinate_transformation_mode", "half_pixel")
        not in parsers.RESIZE_COORDINATES
        or attribute("nearest_mode", "round_prefer_floor") not in parsers.RESIZE_NEAREST
        or bool(node.attributes.get_int("antialias", 0))
        or policy != "stretch"
    )


def _reducing(node: ir.Node) -> bool:
    return node.attributes.get_string("reduction", "none") != "none"


def _rank_3_to_5(node: ir.Node) -> bool:
    shape = dims(node.inputs[0])
    return shape is not None and not 3 <= len(shape) <= 5


_REDUCES = ("ReduceSum", *(name for name in lowering.RULES if name.startswith("Reduce")))
_CONVS = ("Conv", "ConvTranspose")
_MATMUL = "write the slots through MatMul (toolchain.export.emit.matmul)"
_FOLD = "fold shape arithmetic before: capture with a fixed input_shape"
_OTHER = "replace it in the backbone, or leave the module out"

LIMITS = (
    Limit(_CONVS, "its kernel must be constant", _MATMUL, _fed(1), until=(8, 5)),
    Limit(_CONVS, "its bias must be constant", _MATMUL, _fed(2), until=(8, 5)),
    Limit(
        _CONVS,
        "a kernel or bias that is no constant gives wrong answers before 10.4",
        _MATMUL,
        _fed(1, 2),
        since=(8, 5),
        until=(10, 4),
        source="TensorRT release notes, 10.4, convolutions with more than one input",
    ),
    Limit(_CONVS, "two or three spatial dimensions only", _OTHER, _spatial, until=(8, 5)),
    Limit(("AveragePool", "MaxPool"), "two or three spatial dimensions only", _OTHER, _spatial),
    Limit(("AveragePool", "MaxPool", "LpPool"), "no dilations", _OTHER, _dilated),
    Limit(("MaxPool",), "no second output (Indices)", _OTHER, _second_output),
    Limit(("LayerNormalization",), "its first output alone", _OTHER, _second_output),
    Limit(("Resize",), "a mode that the parser does not know", _OTHER, _resize),
    Limit(
        ("InstanceNormalization",),
        "its scale and bias must be constant",
        "use norm: none or batch in the recipe, or a target with TensorRT 8.6 on",
        _variable(1, 2),
        until=(8, 6),
    ),
    Limit(("InstanceNormalization",), "3 to 5 dimensions only", _OTHER, _rank_3_to_5, until=(8, 6)),
    Limit(("QuantizeLinear", "DequantizeLinear"), "its zero point must be 0", _OTHER, _zero_point),
    Limit(("ScatterND", "ScatterElements"), "no reduction", _OTHER, _reducing),
    Limit((*_REDUCES, "Squeeze", "Unsqueeze"), "its axes must be constant", _FOLD, _variable(1)),
    Limit(("Slice", "Pad"), "its axes must be constant", _FOLD, _variable(3)),
    Limit(("TopK",), "its K must be constant", _FOLD, _variable(1), until=(8, 6)),
    Limit(("CumSum", "OneHot"), "its second input must be constant", _FOLD, _variable(1)),
)


def _branch_faults(node: ir.Node) -> Iterator[Breach]:
    # Parsers report these faults late and without a node's name, a wrong rank only at the build.
    (_, opened), (_, closed) = branches(node)
    if len(opened.outputs) != len(closed.outputs):
        counts = f"{len(opened.outputs)} and {len(closed.outputs)}"
        yield f"{where(node)}: expected as many results in both branches, got {counts}", _SAME
        return
    for one, other in zip(opened.outputs, closed.outputs, strict=True):
        pair = f"{where(node)}: {one.name!r} and {other.name!r}"
        if one.name == other.name:
            yield f"{pair}: expected different names in the two branches", "link the model again"
        if one.dtype is None or one.dtype != other.dtype:
            yield f"{pair}: expected one data type, got {_type(one)} and {_type(other)}", _SAME
        shapes = dims(one), dims(other)
        if shapes[0] is None or None in shapes[0] or shapes[0] != shapes[1]:
            yield f"{pair}: expected one known shape, got {shapes[0]} and {shapes[1]}", _SAME


_SAME = (
    "gate blocks whose input and output have the same shape and type (placement: gateable), "
    "at batch 1"
)


def _type(value: ir.Value) -> str:
    return "none" if value.dtype is None else value.dtype.name

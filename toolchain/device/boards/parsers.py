"""What each version of TensorRT's ONNX parser reads, and what it makes of conditionals.

Rules of this file: one table of values, each fact with its source; nothing is looked at here. A row
holds from its ``since`` up to the next row. Where no document was found for a version, the source
names the nearest earlier one that was: a lower limit is safe. Boards and JetPacks stand in
:mod:`toolchain.device.boards.target`. What is in no table here is refused.

The parser itself checks no opset: tensorrt-rtx 1.7.1 parsed a Relu that claims opset 99. So an
opset here is what a document says, and decision 15 says which documents disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from toolchain.core.errors import ModelRefusedError

Version = tuple[int, int]
Boundaries = Literal["made", "repaired", "missing"]
Sources = tuple[tuple[str, str], ...]
LATEST: Version = (99, 0)
# The opset that the export writes (toolchain/export/graph/names.py) and lowers for older parsers.
EXPORTED = 18


@dataclass(frozen=True, slots=True)
class Parser:
    """What follows from the version of TensorRT alone.

    ``since``: the first version (major, minor) that the row holds for. ``opset``: the highest that
    its documents name. ``kit_opset``: what a kit for it is written in, all of whose operators it
    reads; at most what the export writes. ``boundaries``: whether the parser makes the conditional
    input layers itself, whether they are repaired after parsing, or are missing for good.
    ``typed``: networks are strongly typed, so precision stands in the graph. ``conv_slots``: a
    convolution may have a run-time tensor as its kernel. ``layer_precisions``: its ``trtexec`` can
    hold single layers at a precision. ``sources``: where each of these is written, by field.
    """

    since: Version
    opset: int
    kit_opset: int
    boundaries: Boundaries
    typed: bool
    conv_slots: bool
    layer_precisions: bool
    sources: Sources


_OPERATORS = "onnx/onnx-tensorrt, branch {0}, docs/operators.md"
_HELPERS = "onnx/onnx-tensorrt, branch {0}, ConditionalHelpers.cpp"
_CHANGES = "NVIDIA/TensorRT, CHANGELOG.md, "
_FLAGS = "Python bindings of {0}: NetworkDefinitionCreationFlag has no STRONGLY_TYPED"
_TYPED = "Python bindings of {0}: NetworkDefinitionCreationFlag.STRONGLY_TYPED"
_BY_NAME = ": a layer finds its outer tensors by their names, as prefixes of its own"
_BY_VALUE = (
    ": getSubgraphTensors hands its list over by value, so it finds no outer tensor (by reference "
    "from 8.5-GA on)"
)
_FIXED = _CHANGES + "10.6.0, Parser Changes: conditional layers were incorrectly being added"
_MULTI = _CHANGES + "10.4.0, Parser changes: fixed kernel shapes of multi-input convolutions"
_CONSTANT = ": the row Conv wants W as an initializer"
_ONLY = (
    "TensorRT 11.4.1 release notes, breaking changes: 11.0 removed weak typing; bindings of 11.4.0:"
    " BuilderFlag has no FP16 and no INT8"
)


def _sources(
    *, opset: str, boundaries: str, typed: str, conv_slots: str, kit_opset: str = ""
) -> Sources:
    """Return the sources by field; ``kit_opset`` has that of ``opset`` unless it names another."""
    return (
        ("opset", opset),
        ("kit_opset", kit_opset or opset),
        ("boundaries", boundaries),
        ("typed", typed),
        ("conv_slots", conv_slots),
        ("layer_precisions", "samples/common/sampleOptions.cpp of NVIDIA/TensorRT, per tag"),
    )


# A new version of TensorRT is one row here; the rows are in order.
PARSERS = (
    Parser(
        since=(8, 2),
        opset=13,
        kit_opset=13,
        boundaries="missing",
        typed=False,
        conv_slots=False,
        layer_precisions=False,
        sources=_sources(
            opset=_OPERATORS.format("8.2-GA"),
            boundaries=_HELPERS.format("8.2-GA") + _BY_VALUE,
            typed=_FLAGS.format("8.5.3, the oldest that were looked at"),
            conv_slots=_OPERATORS.format("8.2-GA") + _CONSTANT,
        ),
    ),
    Parser(
        since=(8, 5),
        opset=17,
        kit_opset=16,
        boundaries="made",
        typed=False,
        conv_slots=False,
        layer_precisions=True,
        sources=_sources(
            opset=_OPERATORS.format("8.5-GA"),
            kit_opset=_OPERATORS.format("8.5-GA")
            + " names opset 17, but not its LayerNormalization",
            boundaries=_HELPERS.format("8.5-GA") + _BY_NAME,
            typed=_FLAGS.format("8.5.3"),
            conv_slots=_MULTI,
        ),
    ),
    Parser(
        since=(8, 6),
        opset=17,
        kit_opset=17,
        boundaries="repaired",
        typed=False,
        conv_slots=False,
        layer_precisions=True,
        sources=_sources(
            opset=_OPERATORS.format("8.6-GA"),
            boundaries=_HELPERS.format("8.6-GA") + _BY_NAME,
            typed=_FLAGS.format("8.6.1"),
            conv_slots=_MULTI,
        ),
    ),
    Parser(
        since=(10, 0),
        opset=20,
        kit_opset=EXPORTED,
        boundaries="repaired",
        typed=True,
        conv_slots=False,
        layer_precisions=True,
        sources=_sources(
            opset="not found for 10.3, taken from " + _OPERATORS.format("10.1-GA"),
            boundaries=f"not found for 10.3, taken from {_HELPERS.format('10.1-GA')}{_BY_NAME}; "
            + _FIXED,
            typed=_TYPED.format("10.3.0"),
            conv_slots=_MULTI,
        ),
    ),
    Parser(
        since=(10, 13),
        opset=20,
        kit_opset=EXPORTED,
        boundaries="made",
        typed=True,
        conv_slots=True,
        layer_precisions=True,
        sources=_sources(
            opset="not found for 10.13, taken from " + _OPERATORS.format("10.1-GA"),
            boundaries=_FIXED,
            typed=_TYPED.format("10.13.3"),
            conv_slots=_MULTI,
        ),
    ),
    Parser(
        since=(10, 15),
        opset=24,
        kit_opset=EXPORTED,
        boundaries="made",
        typed=True,
        conv_slots=True,
        layer_precisions=True,
        sources=_sources(
            opset="not found for 10.16, taken from onnx/onnx-tensorrt, docs/operators.md of 10.15",
            boundaries=_FIXED,
            typed=_TYPED.format("10.16.1"),
            conv_slots=_MULTI,
        ),
    ),
    Parser(
        since=(11, 0),
        opset=24,
        kit_opset=EXPORTED,
        boundaries="made",
        typed=True,
        conv_slots=True,
        layer_precisions=True,
        sources=_sources(
            opset="not found for 11.4, taken from docs/operators.md of 10.15; the release notes of "
            "NVIDIA/TensorRT v11.5 and of onnx/onnx-tensorrt release/11.5-GA say that opset 25 "
            "came there",
            boundaries=_FIXED,
            typed=_ONLY,
            conv_slots=_MULTI,
        ),
    ),
)
# TensorRT for RTX counts its versions anew from 1.0 (NVIDIA, TensorRT-RTX documentation).
RTX = Parser(
    since=(1, 0),
    opset=22,
    kit_opset=EXPORTED,
    boundaries="made",
    typed=True,
    conv_slots=True,
    layer_precisions=True,
    sources=_sources(
        opset="not found for RTX 1.7, taken from docs.nvidia.com/deeplearning/tensorrt-rtx/1.4, "
        "ONNX Conversion Guide: opsets 9 to 22; tensorrt-rtx 1.7.1 itself also knows the operators "
        "that are new in 23 and 24, and not those of 26",
        boundaries="tensorrt-rtx 1.7.1 itself, which this project's tests parse with",
        typed="bindings of tensorrt-rtx 1.7.1: BuilderFlag has no FP16 and no INT8",
        conv_slots="tensorrt-rtx 1.7.1 itself, which this project's tests build with",
    ),
)


def parser(tensorrt: str) -> Parser:
    """Return the row of a version such as ``8.6.2``; below 8.2 it is that of 8.2.

    ``1.7`` and ``rtx1.7`` are TensorRT for RTX. Raises as :func:`version_of`.
    """
    number = _number(tensorrt)
    if number[0] < 2:
        return RTX
    return next((row for row in reversed(PARSERS) if row.since <= number), PARSERS[0])


def version_of(tensorrt: str) -> Version:
    """Return (major, minor) of a version such as ``8.6.2``, by which operators are looked up.

    TensorRT for RTX takes the newest tables. Raises ModelRefusedError for what is no version.
    """
    number = _number(tensorrt)
    # RTX 1.x came after TensorRT 10, although its number is lower.
    return number if number[0] >= 2 else PARSERS[-1].since


def _number(tensorrt: str) -> Version:
    parts = tensorrt.removeprefix("rtx").split(".")
    if len(parts) < 2 or not all(part.isascii() and part.isdigit() for part in parts[:2]):
        raise ModelRefusedError(
            f"expected a TensorRT version such as 8.6, got {tensorrt!r}",
            fix="name a target of the table: da3 doctor --targets",
        )
    return int(parts[0]), int(parts[1])


# -- operators ------------------------------------------------------------------------------------
# Source of every row below, unless it names another: onnx-tensorrt, docs/operators.md of the
# branches 8.2-GA, 8.5-GA, 8.6-GA and 10.1-GA (which says that it holds from 10.0 on). The rows of
# 10.6 and later are those of 10.0, taken as a bound from below. The tables hold the operators that
# linked graphs and our passes can hold.

# Letters are the data types of an operator's first input: F fp32 and fp16 (from 10.0 bf16), I int32
# and int64, Q int8, B bool.
_TYPES_8: Mapping[str, str] = {
    "F": "Acos Acosh Asin Asinh Atan Atanh BatchNormalization Ceil Celu ConstantOfShape Cos Cosh "
    "CumSum Dropout Einsum Erf Exp Floor GroupNormalization InstanceNormalization "
    "LayerNormalization Log LogSoftmax LpNormalization LRN MatMul NonZero Pow QuantizeLinear "
    "Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin "
    "ReduceProd ReduceSum ReduceSumSquare Resize Sin Sinh Softmax Sqrt Tan TopK "
    "MeanVarianceNormalization GridSample",
    "FI": "Abs Add DepthToSpace Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod "
    "Mul Neg SpaceToDepth Sub Sum",
    "FQ": "Clip Conv ConvTranspose Elu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool "
    "HardSigmoid HardSwish LeakyRelu LpPool MaxPool PRelu Relu Round Selu Sigmoid Softplus "
    "Softsign Tanh ThresholdedRelu",
    "FIQ": "AveragePool GatherElements GatherND Pad ScatterElements ScatterND Sign",
    "FIB": "Expand Flatten Split Tile Where",
    "FIQB": "Cast Concat Constant Gather Identity Reshape Shape Size Slice Squeeze Transpose Trilu "
    "Unsqueeze",
    "B": "And If Not Or Xor",
    "Q": "DequantizeLinear",
}
# From 10.0 int8 is a quantised type: it stands between QuantizeLinear and DequantizeLinear alone.
_TYPES_10: Mapping[str, str] = {
    "F": "AveragePool Clip Conv ConvTranspose Elu Gelu Gemm GlobalAveragePool GlobalLpPool "
    "GlobalMaxPool HardSigmoid HardSwish Hardmax LeakyRelu LpPool MaxPool Mish PRelu Round Selu "
    "Sigmoid Softplus Softsign Tanh ThresholdedRelu",
    "FI": "Pad ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin "
    "ReduceProd ReduceSum ReduceSumSquare Relu ScatterElements ScatterND Sign TopK",
    "FIB": "Cast CastLike Concat Constant ConstantOfShape Gather GatherElements GatherND Identity "
    "OneHot Reshape Shape Size Slice Squeeze Transpose Trilu Unsqueeze",
}
# The first version that reads an operator, where that is not 8.2.
SINCE: Mapping[str, Version] = {
    "GridSample": (8, 5),
    "HardSwish": (8, 5),
    "MeanVarianceNormalization": (8, 5),
    "Mod": (8, 5),
    "NonZero": (8, 5),
    "OneHot": (8, 5),
    "Reciprocal": (8, 5),
    "Trilu": (8, 5),
    "Xor": (8, 5),
    "GroupNormalization": (8, 6),
    "LayerNormalization": (8, 6),
    "CastLike": (10, 0),
    "Gelu": (10, 0),
    "Hardmax": (10, 0),
    "Mish": (10, 0),
}
# What to do where an operator comes too late; for the others a newer target is the way.
INSTEAD: Mapping[str, str] = {
    "NonZero": "link the form 'if' (batch 1): the form 'rows' finds open rows with NonZero",
    "LayerNormalization": "lower the model to opset 16 or below, which takes it apart",
    "GroupNormalization": "lower the model to opset 17 or below, which takes it apart",
    "HardSwish": "lower the model to opset 13, which takes it apart",
    "Mish": "lower the model to opset 17 or below, which takes it apart",
    "Gelu": "lower the model to opset 18 or below, which takes it apart",
}
RESIZE_MODES = ("nearest", "linear")
RESIZE_COORDINATES = (
    "half_pixel",
    "pytorch_half_pixel",
    "tf_half_pixel_for_nn",
    "asymmetric",
    "align_corners",
)
RESIZE_NEAREST = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")


def types(version: Version) -> Mapping[str, str]:
    """Return the letters of the data types that each operator takes, by operator."""
    # The later table replaces the earlier one operator by operator; the rest stays.
    tables = [_TYPES_8, _TYPES_10] if version >= (10, 0) else [_TYPES_8]
    return {
        operator: letters
        for table in tables
        for letters, listed in table.items()
        for operator in listed.split()
    }

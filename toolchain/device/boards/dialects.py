"""What the ONNX parser of each TensorRT generation reads: the tables.

Rules of this file: values with their source, for the operators that linked graphs and our passes
can hold; what is in no table is refused. Nothing is looked at here.

Source of every row, unless it names another: onnx-tensorrt, docs/operators.md of the branches
8.2-GA, 8.5-GA, 8.6-GA and 10.1-GA (which says it holds from 10.0 on). No such document was found
for 10.6 and later: their rows are those of 10.0, taken as a bound from below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Version = tuple[int, int]
LATEST: Version = (99, 0)


@dataclass(frozen=True, slots=True)
class Parser:
    """One generation: from which TensorRT on, highest opset, and where that is written."""

    since: Version
    opset: int
    source: str


PARSERS = (
    Parser((8, 2), 13, "onnx-tensorrt docs/operators.md, 8.2-GA"),
    Parser((8, 5), 17, "onnx-tensorrt docs/operators.md, 8.5-GA"),
    Parser((8, 6), 17, "onnx-tensorrt docs/operators.md, 8.6-GA"),
    Parser((10, 0), 20, "onnx-tensorrt docs/operators.md, 10.1-GA"),
    Parser((11, 0), 25, "TensorRT ONNX opset guide, 11.x; operators as in 10.1-GA"),
)

# Letters: F fp32 and fp16 (from 10.0 bf16), I int32 and int64, Q int8, B bool. Of the first input.
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

# The first generation that reads an operator, where that is not 8.2.
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
# What to do where an operator comes too late; the others are answered by a newer target.
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


def parser(version: Version) -> Parser:
    """Return the generation that ``version`` belongs to; below 8.2 it is 8.2's."""
    fitting = [entry for entry in PARSERS if entry.since <= version]
    return fitting[-1] if fitting else PARSERS[0]


def types(version: Version) -> Mapping[str, str]:
    """Return the letters of the data types that each operator takes."""
    tables = [_TYPES_8, _TYPES_10] if version >= (10, 0) else [_TYPES_8]
    return {
        operator: letters
        for table in tables
        for letters, listed in table.items()
        for operator in listed.split()
    }

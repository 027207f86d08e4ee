"""What each generation of TensorRT's ONNX parser reads, and what it makes of conditionals.

Rules of this file: values, one for each version that a row of :mod:`toolchain.device.boards.target`
carries, each fact with its source; the boards and their JetPacks stand there. Where no document was
found for a version, the source names the nearest earlier one that was: a lower limit is safe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Boundaries = Literal["made", "repaired", "missing"]
Sources = tuple[tuple[str, str], ...]
_OPTIONS = "samples/common/sampleOptions.cpp of NVIDIA/TensorRT, per tag"
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
_NO_NORM = " reads opset 17, but not its LayerNormalization"
_FIXED = _CHANGES + "10.6.0, Parser Changes: conditional layers were incorrectly being added"
_MULTI = _CHANGES + "10.4.0, Parser changes: fixed kernel shapes of multi-input convolutions"
_CONSTANT = ": the row Conv wants W as an initializer"
_ONLY = (
    "TensorRT 11.4.1 release notes, breaking changes: 11.0 removed weak typing; bindings of 11.4.0:"
    " BuilderFlag has no FP16 and no INT8"
)


@dataclass(frozen=True, slots=True)
class Parser:
    """What follows from the version of TensorRT alone; fields as those of ``Release``.

    ``from_where``: the sources of ``opset``, ``boundaries``, ``typed`` and ``conv_slots``.
    """

    opset: int
    boundaries: Boundaries
    typed: bool
    conv_slots: bool
    layer_precisions: bool
    from_where: tuple[str, str, str, str]

    @property
    def sources(self) -> Sources:
        """The sources by field."""
        named = zip(("opset", "boundaries", "typed", "conv_slots"), self.from_where, strict=True)
        return (*named, ("layer_precisions", _OPTIONS))


V8_2 = Parser(
    *(13, "missing", False, False, False),
    (
        _OPERATORS.format("8.2-GA"),
        _HELPERS.format("8.2-GA") + _BY_VALUE,
        _FLAGS.format("8.5.3, the oldest that were looked at"),
        _OPERATORS.format("8.2-GA") + _CONSTANT,
    ),
)
V8_5 = Parser(
    *(16, "made", False, False, True),
    (
        _OPERATORS.format("8.5-GA") + _NO_NORM,
        _HELPERS.format("8.5-GA") + _BY_NAME,
        _FLAGS.format("8.5.3"),
        _MULTI,
    ),
)
V8_6 = Parser(
    *(17, "repaired", False, False, True),
    (
        _OPERATORS.format("8.6-GA"),
        _HELPERS.format("8.6-GA") + _BY_NAME,
        _FLAGS.format("8.6.1"),
        _MULTI,
    ),
)
V10_3 = Parser(
    *(20, "repaired", True, False, True),
    (
        "not found for 10.3, taken from " + _OPERATORS.format("10.1-GA"),
        f"not found for 10.3, taken from {_HELPERS.format('10.1-GA')}{_BY_NAME}; {_FIXED}",
        _TYPED.format("10.3.0"),
        _MULTI,
    ),
)
V10_13 = Parser(
    *(20, "made", True, True, True),
    (
        "not found for 10.13, taken from " + _OPERATORS.format("10.1-GA"),
        _FIXED,
        _TYPED.format("10.13.3"),
        _MULTI,
    ),
)
V10_16 = Parser(
    *(24, "made", True, True, True),
    (
        "not found for 10.16, taken from onnx/onnx-tensorrt, docs/operators.md of 10.15",
        _FIXED,
        _TYPED.format("10.16.1"),
        _MULTI,
    ),
)
V11_4 = Parser(
    *(24, "made", True, True, True),
    (
        "not found for 11.4, taken from docs/operators.md of 10.15; the release notes of "
        "NVIDIA/TensorRT v11.5 say that opset 25 came there",
        _FIXED,
        _ONLY,
        _MULTI,
    ),
)
RTX_1_7 = Parser(
    *(24, "made", True, True, True),
    (
        "not found for RTX 1.7, taken from onnx/onnx-tensorrt, docs/operators.md of 10.15",
        "tensorrt-rtx 1.7.1 itself, which this project's tests parse with",
        "bindings of tensorrt-rtx 1.7.1: BuilderFlag has no FP16 and no INT8",
        "tensorrt-rtx 1.7.1 itself, which this project's tests build with",
    ),
)

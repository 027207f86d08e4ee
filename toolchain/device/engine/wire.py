"""Look at an ONNX file's outermost fields without the package onnx, before a parser gets it.

Rules of this file: it looks at the fields at the top of a message and skips what is in them. If a
parser in C++ fails, the whole process ends; so this file refuses what is known to break one.
Source: onnx.proto, ModelProto.
"""

from __future__ import annotations

from toolchain.core.errors import ModelRefusedError
from toolchain.core.wire import WireReader

# onnx.proto, ModelProto: functions = 25, graph = 7.
_FUNCTIONS, _GRAPH = 25, 7
# A model of ours has some ten.
_MOST_FIELDS = 10_000


def require_plain(model: bytes, what: str) -> None:
    """Refuse a model with functions of its own, or without a graph.

    A function that calls itself ends TensorRT's parser and the whole process. None of our models
    has functions. Raises ModelRefusedError, also for bytes that are no message.
    """
    numbers = fields(model, what)
    if _FUNCTIONS in numbers or _GRAPH not in numbers:
        got = "one with functions" if _FUNCTIONS in numbers else "other bytes"
        raise ModelRefusedError(
            f"{what}: expected an ONNX model of plain operators, got {got}",
            fix="copy the kit again, or export it again",
        )


def fields(message: bytes, what: str) -> frozenset[int]:
    """Return the numbers of a message's outermost fields. Raises ModelRefusedError."""
    try:
        reader = WireReader(_MOST_FIELDS)
        return frozenset(number for number, _, _ in reader.fields(memoryview(message)))
    except ValueError as err:
        raise ModelRefusedError(
            f"{what}: expected an ONNX model, got other bytes: {err}",
            fix="copy the kit again, or export it again",
        ) from err

"""Look at an ONNX file's outermost fields without the package onnx, before a parser gets it.

Rules of this file: it reads the fields at the top of a message and skips what is in them. It builds
nothing. If a parser in C++ fails, the whole process ends; so this file refuses what is known to
break one. Sources: protobuf, "Encoding" (wire types, varints); onnx.proto, ModelProto.
"""

from __future__ import annotations

from toolchain.core.errors import ModelRefusedError

# onnx.proto, ModelProto: functions = 25, graph = 7.
_FUNCTIONS, _GRAPH = 25, 7
_FIXED_BYTES = {1: 8, 5: 4}
_LONGEST_VARINT = 10
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
    numbers: set[int] = set()
    at = 0
    for _ in range(_MOST_FIELDS):
        if at == len(message):
            return frozenset(numbers)
        key, at = _varint(message, at, what)
        # A key holds the field's number and, in its three lowest bits, the wire type.
        numbers.add(key >> 3)
        at = _after(message, at, key & 7, what)
    raise _unreadable(what)


def _after(message: bytes, at: int, kind: int, what: str) -> int:
    """Return where a field of a wire type ends that begins at ``at``."""
    if kind == 0:
        return _varint(message, at, what)[1]
    if kind == 2:
        length, at = _varint(message, at, what)
        end = at + length
    elif kind in _FIXED_BYTES:
        end = at + _FIXED_BYTES[kind]
    else:
        raise _unreadable(what)
    if end > len(message):
        raise _unreadable(what)
    return end


def _varint(message: bytes, at: int, what: str) -> tuple[int, int]:
    value = 0
    for shift in range(_LONGEST_VARINT):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        # Seven bits a byte, the lowest first. The eighth bit says that another byte follows.
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, at
    raise _unreadable(what)


def _unreadable(what: str) -> ModelRefusedError:
    return ModelRefusedError(
        f"{what}: expected an ONNX model, got other bytes",
        fix="copy the kit again, or export it again",
    )

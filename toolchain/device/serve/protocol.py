"""The Open Inference Protocol's inference request and response: bytes to values and back.

Rules of this file: no sockets and no models. Bytes and one header's value go in, bytes and one
header's value come out. A parameter of the protocol that would be ignored is refused, because its
sender expects something of it. Shared memory and sequences are not supported.

Python's parser of JSON is one call in C, and no other thread runs while it works. A body is made of
few strings and many numbers, so the values of numbers are made in Python, where threads take turns,
and there may be only so many other values. Whoever needs more sends binary data.

Sources: Open Inference Protocol v2, "Inference Request JSON Object"; Triton's extensions "Binary
Tensor Data" (also its raw request: a header of length 0 before one picture), "Classification",
"Schedule Policy" (``timeout``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as short
from typing import Any

from toolchain.core.canonical import parse_json
from toolchain.core.errors import DataError
from toolchain.device.serve.limits import Limits
from toolchain.device.serve.tensors import (
    DATATYPES,
    NamedTensor,
    from_binary,
    from_json,
    to_binary,
    to_json,
)

HEADER = "Inference-Header-Content-Length"
MANY = 64
MANY_VALUES = 1 << 12
"""Strings, words and empty containers in the JSON of one request."""
MANY_LISTS = 1 << 18
"""Lists in it: each is made, and taken apart again, while no other thread runs."""
_NAME = 200
# Longer than any double or int64, and short enough that no digit costs time.
_DIGITS = 400
_SPACE = b" \t\r\n"
# Bytes that are looked at in one call.
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output of a request; ``classes``: the best so many as "value:index:label", or 0."""

    name: str
    binary: bool
    classes: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """An inference request; ``outputs`` is empty for all of them, and ``binary`` says how then."""

    id: str
    inputs: tuple[NamedTensor, ...]
    outputs: tuple[RequestedOutput, ...]
    binary: bool
    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class Response:
    """An inference response; ``outputs`` are tensors, each with what the request said of it."""

    model: str
    version: str
    id: str
    outputs: tuple[tuple[NamedTensor, RequestedOutput], ...]
    parameters: Mapping[str, float]


def decode(body: bytes, header: str | None, limits: Limits) -> Request:
    """Return the request in ``body``; ``header`` is the value of Inference-Header-Content-Length.

    Raises DataError for everything else than exactly one request within ``limits``.
    """
    length = _length(header, len(body))
    if header is not None and length == 0:
        return _raw(body)
    value = read_json(body[:length], limits.json_bytes)
    _keys(value, "the request", {"inputs"}, {"id", "outputs", "parameters"})
    parameters = _parameters(value, "the request", {"binary_data_output", "timeout"})
    inputs = _inputs(_list(value["inputs"], "inputs"), memoryview(body)[length:])
    outputs = tuple(_requested(one) for one in _list(value.get("outputs", []), "outputs"))
    _unique("output", [one.name for one in outputs])
    name = value.get("id", "")
    if not isinstance(name, str) or len(name) > _NAME:
        raise DataError(f"id: expected text of at most {_NAME} characters, got {short(name)}")
    binary = _flag(parameters, "binary_data_output")
    return Request(name, inputs, outputs, binary, _timeout(parameters.get("timeout")))


def encode(response: Response) -> tuple[bytes, int | None]:
    """Return the body, and the length of the JSON in it where binary data follow.

    Raises DataError for values that JSON cannot say.
    """
    outputs, tail = [], []
    for tensor, requested in response.outputs:
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.array.shape),
        }
        if requested.binary:
            data = to_binary(tensor)
            entry["parameters"] = {"binary_data_size": len(data)}
            tail.append(data)
        else:
            entry["data"] = to_json(tensor)
        outputs.append(entry)
    value = {"model_name": response.model, "model_version": response.version}
    if response.id:
        value["id"] = response.id
    document = write_json({**value, "parameters": dict(response.parameters), "outputs": outputs})
    return b"".join([document, *tail]), len(document) if tail else None


def read_json(data: bytes, limit_bytes: int) -> dict[str, Any]:
    """Return the JSON object in ``data``; raises DataError for anything else.

    Keys that stand there twice, NaN, infinities, other encodings than UTF-8, nesting beyond the
    parser's own limit, more than ``MANY_VALUES`` strings, words and empty containers, more than
    ``MANY_LISTS`` lists, and numbers of more than 400 characters are refused.
    """
    if len(data) > limit_bytes:
        raise DataError(
            f"expected at most {limit_bytes} bytes of JSON, got {len(data)}",
            fix="send tensors as binary data",
        )
    _require_numbers(data)
    try:
        value = parse_json(data, whole=_whole, real=_real)
    except ValueError as err:
        raise DataError(f"expected JSON, got {str(err)[:200]}") from err
    if not isinstance(value, dict):
        raise DataError(f"expected a JSON object, got {short(value)}")
    return value


def _require_numbers(data: bytes) -> None:
    """Refuse a JSON text that may hold more values but numbers, or more lists, than a request has.

    What stands inside strings counts as well: an upper bound is enough.
    """
    values = lists = 0
    words = (b"null", b"true", b"false", b"[]", b"{}")
    for start in range(0, len(data), _PIECE):
        # A word that two pieces share is not counted; there are few pieces.
        piece = data[start : start + _PIECE].translate(None, _SPACE)
        values += piece.count(b'"') // 2 + sum(map(piece.count, words))
        lists += piece.count(b"[")
    for count, most, what in (
        (values, MANY_VALUES, "strings, words and empty lists"),
        (lists, MANY_LISTS, "lists"),
    ):
        if count > most:
            raise DataError(
                f"expected at most {most} {what} in JSON, got {count}",
                fix="send tensors as binary data",
            )


# Both look like what the parser would do itself. But they are functions of Python: at each number
# the interpreter may let another thread run.
def _whole(text: str) -> int:
    return int(_short(text))


def _real(text: str) -> float:
    return float(_short(text))


def _short(text: str) -> str:
    if len(text) > _DIGITS:
        raise ValueError(f"a number of {len(text)} characters")
    return text


def write_json(value: object) -> bytes:
    """Return ``value`` as JSON in ASCII, which every reader takes."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def _length(header: str | None, size: int) -> int:
    if header is None:
        return size
    # ASCII digits only: int() takes signs, spaces, underscores and the digits of other scripts.
    if not re.fullmatch("[0-9]{1,12}", header) or int(header) > size:
        raise DataError(f"{HEADER}: expected a number from 0 to {size}, got {short(header)}")
    return int(header)


def _raw(body: bytes) -> Request:
    """A body that is one encoded picture and nothing else."""
    # As BYTES come in binary data: each with its length before it.
    framed = len(body).to_bytes(4, "little") + body
    tensor = NamedTensor("image", "BYTES", from_binary(memoryview(framed), "BYTES", [1]))
    return Request("", (tensor,), (), False, None)


def _inputs(entries: Sequence[Any], tail: memoryview) -> tuple[NamedTensor, ...]:
    if not entries:
        raise DataError("inputs: expected at least one, got none")
    tensors, at = [], 0
    for entry in entries:
        tensor, size = _input(entry, tail[at:])
        tensors.append(tensor)
        at += size
    if at != len(tail):
        raise DataError(f"expected {at} bytes after the JSON, got {len(tail)}")
    _unique("input", [tensor.name for tensor in tensors])
    return tuple(tensors)


def _input(entry: Any, tail: memoryview) -> tuple[NamedTensor, int]:
    """Return the tensor of ``entry`` and how many bytes of ``tail`` it took."""
    _keys(entry, "an input", {"name", "shape", "datatype"}, {"data", "parameters"})
    name, datatype, shape = _name(entry), entry["datatype"], entry["shape"]
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise DataError(
            f"{name}: expected a datatype of {', '.join(DATATYPES)}, got {short(datatype)}"
        )
    size = _parameters(entry, name, {"binary_data_size"}).get("binary_data_size")
    if (size is None) == ("data" not in entry):
        raise DataError(f"{name}: expected either data or binary_data_size, got both or neither")
    if size is None:
        return NamedTensor(name, datatype, from_json(entry["data"], datatype, shape)), 0
    if type(size) is not int or not 0 <= size <= len(tail):
        raise DataError(
            f"{name}: expected a binary_data_size from 0 to {len(tail)}, got {short(size)}"
        )
    return NamedTensor(name, datatype, from_binary(tail[:size], datatype, shape)), size


def _requested(entry: Any) -> RequestedOutput:
    _keys(entry, "an output", {"name"}, {"parameters"})
    name = _name(entry)
    parameters = _parameters(entry, name, {"binary_data", "classification"})
    classes = parameters.get("classification", 0)
    if type(classes) is not int or not 0 <= classes < 2**31:
        raise DataError(f"{name}: expected a number of classes from 0 on, got {short(classes)}")
    return RequestedOutput(name, _flag(parameters, "binary_data"), classes)


def _keys(value: Any, what: str, needed: Collection[str], further: Collection[str]) -> None:
    if not isinstance(value, dict):
        raise DataError(f"{what}: expected a JSON object, got {short(value)}")
    missing = [key for key in sorted(needed) if key not in value]
    stray = [key for key in value if key not in needed and key not in further]
    if missing or stray:
        got = f"no {missing[0]}" if missing else f"an unknown {short(stray[0])}"
        known = ", ".join(sorted({*needed, *further}))
        raise DataError(f"{what}: expected the keys {known}, got {got}")


def _parameters(value: Mapping[str, Any], what: str, known: Collection[str]) -> dict[str, Any]:
    parameters = value.get("parameters", {})
    if not isinstance(parameters, dict):
        raise DataError(f"{what}: expected parameters as a JSON object, got {short(parameters)}")
    for key in parameters:
        if key not in known:
            raise DataError(
                f"{what}: expected no parameters but {', '.join(sorted(known))}, got {short(key)}"
            )
    return parameters


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > MANY:
        got = f"{len(value)}" if isinstance(value, list) else short(value)
        raise DataError(f"{what}: expected a list of at most {MANY}, got {got}")
    return value


def _name(entry: Mapping[str, Any]) -> str:
    name = entry["name"]
    if not isinstance(name, str) or not 0 < len(name) <= _NAME:
        raise DataError(f"expected a name of 1 to {_NAME} characters, got {short(name)}")
    return name


def _unique(what: str, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise DataError(f"expected each {what} once, got one twice")


def _flag(parameters: Mapping[str, Any], key: str) -> bool:
    value = parameters.get(key, False)
    if type(value) is not bool:
        raise DataError(f"{key}: expected true or false, got {short(value)}")
    return value


def _timeout(value: Any) -> float | None:
    """Triton's ``timeout`` in microseconds as seconds; 0 stands for none."""
    if value is None or value == 0:
        return None
    if type(value) is not int or not 0 < value < 2**63:
        raise DataError(f"timeout: expected whole microseconds, got {short(value)}")
    return value / 1e6

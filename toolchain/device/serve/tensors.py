"""Tensors of the Open Inference Protocol: JSON values and raw bytes to arrays and back.

Rules of this file: pure functions. The sizes of a shape are multiplied as whole numbers without a
limit before anything is allocated, so nothing overflows. The count of values or bytes must be
exactly what the shape says. No value is converted between kinds (a string is no number, ``true`` is
no 1, 300 is no UINT8). NaN and infinities are no JSON (RFC 8259, section 6). BF16 is not here:
numpy has none.

Sources: Open Inference Protocol v2, "Tensor Data"; Triton, "Binary Tensor Data
Extension".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from reprlib import repr as short
from typing import Any

import numpy as np

from toolchain.core.arrays import Array
from toolchain.core.errors import DataError

_RANK = 8
# Values that are turned into an array at once: while that runs, no other thread does.
_PIECE = 1 << 14
_LENGTH = struct.Struct("<I")
# BYTES: an element is a byte string of any length.
DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(bool),
    "BYTES": np.dtype(object),
    **{f"INT{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
}
_KINDS: dict[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "O": frozenset({str}),
    "i": frozenset({int}),
    "u": frozenset({int}),
    "f": frozenset({int, float}),
}


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """A named tensor; ``array`` has the dtype of ``datatype``, or bytes objects for BYTES."""

    name: str
    datatype: str
    array: Array


def elements(shape: Sequence[int]) -> int:
    """Return how many elements ``shape`` has; raises DataError for what is no shape.

    1 to 8 whole numbers, each at least 1.
    """
    if not isinstance(shape, list | tuple) or not 1 <= len(shape) <= _RANK:
        raise DataError(f"expected a shape of 1 to {_RANK} numbers, got {short(shape)}")
    if not all(type(size) is int and size > 0 for size in shape):
        raise DataError(f"expected sizes that are whole numbers above 0, got {short(shape)}")
    return math.prod(shape)


def from_json(data: object, datatype: str, shape: Sequence[int]) -> Array:
    """Return the array that a JSON list holds, nested as ``shape`` or flat in row-major order.

    Raises DataError for another count, form or kind of value than ``shape`` and ``datatype`` say.
    """
    count = elements(shape)
    flat = _flat(data, shape, count)
    array = np.empty(count, DATATYPES[datatype])
    for start in range(0, count, _PIECE):
        array[start : start + _PIECE] = _piece(flat[start : start + _PIECE], datatype)
    return array.reshape(tuple(shape))


def _piece(values: list[Any], datatype: str) -> Array:
    """Return some of the values of a JSON list as an array; raises DataError as a whole list."""
    dtype = DATATYPES[datatype]
    # type() and not isinstance(): true and false would pass as whole numbers.
    kinds = set(map(type, values))
    if kinds - _KINDS[dtype.kind]:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise DataError(f"expected values for {datatype}, got {names}")
    try:
        array = _array(values, dtype)
    except (OverflowError, UnicodeError) as err:
        raise DataError(f"expected values that fit into {datatype}, got larger ones") from err
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"expected finite values that fit into {datatype}, got others")
    return array


def from_binary(data: memoryview, datatype: str, shape: Sequence[int]) -> Array:
    """Return the array in ``data``: little-endian, row-major; BYTES with a length before each.

    Raises DataError for more or fewer bytes than ``shape`` says.
    """
    count = elements(shape)
    dtype = DATATYPES[datatype]
    if dtype.kind == "O":
        return _bytes_array(list(_split(data, count))).reshape(tuple(shape))
    if len(data) != count * dtype.itemsize:
        raise DataError(
            f"expected {count * dtype.itemsize} bytes of {datatype} {list(shape)}, got {len(data)}"
        )
    if dtype.kind == "b" and np.frombuffer(data, np.uint8).max() > 1:
        raise DataError("expected bytes of 0 or 1 for BOOL, got others")
    values = np.frombuffer(data, dtype.newbyteorder("<"))
    return values.astype(dtype, copy=False).reshape(tuple(shape))


def to_json(tensor: NamedTensor) -> list[Any]:
    """Return the values in row-major order as JSON values.

    Raises DataError for NaN and infinities, and for BYTES that are no UTF-8: ask for binary data.
    """
    flat = tensor.array.reshape(-1)
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        raise DataError(
            f"{tensor.name}: expected finite values for JSON, got NaN or infinities",
            fix="ask for binary data",
        )
    if flat.dtype.kind != "O":
        return list(flat.tolist())
    try:
        return [value.decode() for value in flat]
    except UnicodeError as err:
        raise DataError(f"{tensor.name}: expected UTF-8 for JSON, got other bytes") from err


def to_binary(tensor: NamedTensor) -> bytes:
    """Return the values as :func:`from_binary` reads them."""
    if tensor.array.dtype.kind == "O":
        flat = tensor.array.reshape(-1)
        return b"".join(_LENGTH.pack(len(value)) + value for value in flat)
    dtype = tensor.array.dtype.newbyteorder("<")
    return np.ascontiguousarray(tensor.array, dtype).tobytes()


def texts(values: Sequence[str], shape: Sequence[int]) -> Array:
    """Return ``values`` as a BYTES array of ``shape``."""
    return _bytes_array([value.encode() for value in values]).reshape(tuple(shape))


def _array(values: list[Any], dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "O":
        return _bytes_array([text.encode() for text in values])
    # Too large a number becomes an infinity, which is refused.
    with np.errstate(over="ignore"):
        return np.array(values, dtype)


def _bytes_array(values: list[bytes]) -> Array:
    # np.array would look into the byte strings; filling does not.
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _split(data: memoryview, count: int) -> Iterator[bytes]:
    """Yield ``count`` byte strings that fill ``data`` exactly."""
    at = 0
    for index in range(count):
        if len(data) - at < _LENGTH.size:
            raise DataError(f"expected {count} BYTES elements, got {index} and the end of the data")
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if size > len(data) - at:
            raise DataError(f"expected {size} bytes of element {index}, got {len(data) - at}")
        yield bytes(data[at : at + size])
        at += size
    if at != len(data):
        raise DataError(f"expected {at} bytes of BYTES data, got {len(data)}")


def _flat(data: object, shape: Sequence[int], count: int) -> list[Any]:
    """Return the values of a list that is flat, or nested exactly as ``shape``."""
    if not isinstance(data, list):
        raise DataError(f"expected data as a list, got {short(data)}")
    if not (data and isinstance(data[0], list)):
        if len(data) != count:
            raise DataError(f"expected {count} values for shape {list(shape)}, got {len(data)}")
        return data
    level = [data]
    for size in shape:
        if not all(isinstance(row, list) and len(row) == size for row in level):
            raise DataError(f"expected data nested as its shape {list(shape)}, got another form")
        rows, level = level, []
        # One row at a time, for the same reason as the pieces.
        for row in rows:
            level += row
    return level

"""Protobuf messages, field by field, without a schema and without a parser in C++.

Rules of this file: bytes in, values out; the standard library only. It builds nothing and copies
nothing. A reader states how many fields it will look at, all messages together, so no bytes can
keep it busy. What a field means is its caller's to know. Source: protobuf, "Encoding" (wire types,
varints). Groups (wire types 3 and 4) are refused: nothing that we read has them.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
Value = int | memoryview
_FIXED_BYTES = {FIXED64: 8, FIXED32: 4}
_LONGEST_VARINT = 10


class WireReader:
    """Reads messages, at most ``limit`` fields in all of them."""

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit

    def fields(self, message: memoryview) -> Iterator[tuple[int, int, Value]]:
        """Yield number, wire type and value of each field: bytes as a view, numbers as integers.

        Raises ValueError for bytes that are no message, and beyond the limit.
        """
        at, end = 0, len(message)
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise ValueError(f"more than {self._limit} fields")
            key, at = varint(message, at)
            # A key holds the field's number and, in its three lowest bits, the wire type.
            number, kind = key >> 3, key & 7
            if kind == VARINT:
                value, at = varint(message, at)
                yield number, kind, value
                continue
            if kind == BYTES:
                size, at = varint(message, at)
            elif kind in _FIXED_BYTES:
                size = _FIXED_BYTES[kind]
            else:
                raise ValueError(f"a field of wire type {kind}")
            if size > end - at:
                raise ValueError(f"a field of {size} bytes where {end - at} are left")
            part = message[at : at + size]
            at += size
            yield number, kind, part if kind == BYTES else int.from_bytes(part, "little")

    def varints(self, packed: memoryview) -> Iterator[int]:
        """Yield the numbers of a packed field. Raises ValueError as :meth:`fields`."""
        at = 0
        while at < len(packed):
            self._left -= 1
            if self._left < 0:
                raise ValueError(f"more than {self._limit} fields")
            value, at = varint(packed, at)
            yield value


def varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the number that begins at ``at``, and where it ends. Raises ValueError."""
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
    raise ValueError("a number that does not end")


def signed(value: int) -> int:
    """Return a varint's number as the int64 that it stands for."""
    return value - (1 << 64) if value >> 63 else value

"""Scalars in the format that TensorBoard reads.

Rules of this file: it writes the few fields that scalars need, so that nobody needs TensorBoard or
TensorFlow to write them. A file is a chain of TFRecords (length and data, each with a masked
CRC-32C), and each record is an ``Event`` in protobuf's wire format (TensorFlow's event.proto and
summary.proto).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from functools import cache

VERSION = "brain.Event:2"
_CASTAGNOLI = 0x82F63B78
_MASK_DELTA = 0xA282EAD8
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def header(wall_time: float) -> bytes:
    """Return the record that a file begins with; ``wall_time`` in seconds since 1970."""
    return _record(_double(1, wall_time) + _text(3, VERSION.encode()))


def scalars(wall_time: float, step: int, values: Mapping[str, float]) -> bytes:
    """Return one record with ``values`` by tag, such as ``loss/train``, at ``step``."""
    summary = b"".join(_text(1, value) for value in _values(values))
    return _record(_double(1, wall_time) + _whole(2, step) + _text(5, summary))


def _values(values: Mapping[str, float]) -> Iterator[bytes]:
    for tag, value in values.items():
        yield _text(1, tag.encode()) + _key(2, _FIXED32) + struct.pack("<f", value)


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    crc = crc32c(data)
    # Masked, as the checksum of data that holds checksums is weak.
    masked = ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF
    return struct.pack("<I", masked)


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of ``data`` (RFC 3720, appendix B.4)."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


@cache
def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (_CASTAGNOLI if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


def _key(field: int, kind: int) -> bytes:
    return bytes([field << 3 | kind])


def _whole(field: int, value: int) -> bytes:
    return _key(field, _VARINT) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _key(field, _FIXED64) + struct.pack("<d", value)


def _text(field: int, value: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])

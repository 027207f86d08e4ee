"""Safetensors read in place: which bytes of a file are which tensor, without copying any.

Rules of this file: bytes in, values out; as strict as the safetensors library, which copies every
tensor and so takes three times as long to read a bundle (a property test holds the two to the same
verdict). The format: 8 bytes with the size of the header (little-endian), a JSON header of name to
dtype, shape and offsets, then the tensors' bytes without holes or overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

from toolchain.core.canonical import parse_json

LIMIT_HEADER_BYTES = 1 << 20
METADATA = "__metadata__"
_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "I16": 16,
    "U16": 16,
    "I32": 32,
    "U32": 32,
    "I64": 64,
    "U64": 64,
    "BF16": 16,
    "F16": 16,
    "F32": 32,
    "F64": 64,
}


class Place(NamedTuple):
    """One tensor of a file: ``dtype`` as safetensors names it, ``data`` its bytes in the file.

    ``offset``: of its first byte in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview
    offset: int


def read_places(data: bytes | memoryview) -> list[Place]:
    """Return the tensors of the safetensors file ``data``, in the order of their bytes.

    Raises ValueError saying what is wrong, also for a name that stands twice in the header, of
    which parsers keep different ones.
    """
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(len(data) - 8, LIMIT_HEADER_BYTES):
        raise ValueError(f"a header of {size} bytes in a file of {len(data)}")
    header = parse_json(bytes(data[8 : 8 + size]))
    if not isinstance(header, dict):
        raise ValueError("a header that is no object")  # noqa: TRY004  # of a file, not of a call
    header.pop(METADATA, None)
    body = memoryview(data)[8 + size :]
    found = sorted(map(_entry, header.items()), key=_extent)
    return list(_laid_out(found, body, 8 + size))


_Entry = tuple[str, str, list[int], int, int]


def _extent(entry: _Entry) -> tuple[int, int]:
    # Tensors without elements stand before the one that begins where they do.
    return entry[3:]


def _entry(item: tuple[str, Any]) -> _Entry:
    name, value = item
    try:
        dtype, shape, (first, last) = value["dtype"], value["shape"], value["data_offsets"]
        if (
            len(value) == 3
            and dtype in _BITS
            and {int}.issuperset(map(type, (*shape, first, last)))
        ):
            return name, dtype, shape, first, last
    except (KeyError, TypeError, ValueError):
        pass  # told below, with what was found
    raise ValueError(f"the entry {str(value)[:100]} for {name[:100]!r}")


def _laid_out(entries: list[_Entry], body: memoryview, start: int) -> Iterator[Place]:
    """Yield the places; each tensor begins where the last one ended, and the file with the last."""
    end = 0
    for name, dtype, shape, first, last in entries:
        bits = prod(shape) * _BITS[dtype]
        if (
            first != end
            or 8 * (last - first) != bits
            or last > len(body)
            or min(shape, default=0) < 0
        ):
            raise ValueError(f"the bytes {first} to {last} for {name!r}, {dtype} {list(shape)}")
        yield Place(name, dtype, tuple(shape), body[first:last], start + first)
        end = last
    if end != len(body):
        raise ValueError(f"{len(body) - end} bytes that no tensor has")

"""Safetensors read in place: which bytes of a file are which tensor, without copying any.

Rules of this file: bytes in, values out; the only parser of the header. It is as strict as the
safetensors library, and a property test compares the verdicts of the two. The library copies every
tensor, and so takes three times as long to read a bundle.

The format: 8 bytes with the size of the header (little-endian), a JSON header of name to dtype,
shape and offsets, then the tensors' bytes without holes or overlap. The name ``__metadata__``
stands for what the writer noted, as texts by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

from toolchain.core.canonical import parse_json

# For a domain's tensors: room for as many as a manifest lists, with the longest names.
LIMIT_HEADER_BYTES = 4 << 20
# For a whole model's tensors: what the safetensors library takes at most.
LIBRARY_HEADER_BYTES = 100_000_000
_METADATA = "__metadata__"
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


def read_places(data: bytes | memoryview, *, limit_bytes: int = LIMIT_HEADER_BYTES) -> list[Place]:
    """Return the tensors of the safetensors file ``data``, in the order of their bytes.

    Raises ValueError saying what is wrong, also for a header of more than ``limit_bytes``, and for
    a name that stands twice in it: parsers disagree which of the two counts.
    """
    header, size = _header(data, limit_bytes)
    header.pop(_METADATA, None)
    entries = sorted(map(_entry, header.items()), key=_extent)
    return list(_laid_out(entries, memoryview(data)[size:], size))


def read_metadata(data: bytes | memoryview) -> dict[str, str]:
    """Return what the writer of the safetensors file ``data`` noted in it; empty without notes.

    Raises ValueError for a header that is none; the tensors are not looked at.
    """
    notes = _header(data, LIBRARY_HEADER_BYTES)[0].get(_METADATA, {})
    if not isinstance(notes, dict) or not all(isinstance(text, str) for text in notes.values()):
        raise ValueError("metadata that are no texts by name")
    return notes


def _header(data: bytes | memoryview, limit_bytes: int) -> tuple[dict[str, Any], int]:
    """Return the header, and how many bytes of the file come before the tensors'."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(len(data) - 8, limit_bytes):
        raise ValueError(f"a header of {size} bytes in a file of {len(data)}")
    header = parse_json(bytes(data[8 : 8 + size]))
    if not isinstance(header, dict):
        raise ValueError("a header that is no object")  # noqa: TRY004  # of a file, not of a call
    return header, 8 + size


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
            # type() and not isinstance(): true and false would pass as integers.
            and {int}.issuperset(map(type, (*shape, first, last)))
        ):
            return name, dtype, shape, first, last
    except (KeyError, TypeError, ValueError):
        pass  # The error below shows the entry.
    raise ValueError(f"the entry {str(value)[:100]} for {name[:100]!r}")


def _laid_out(entries: list[_Entry], body: memoryview, start: int) -> Iterator[Place]:
    """Yield the places. Each tensor begins where the one before it ended; nothing follows."""
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

"""Safetensors read in place: the library's verdict, without its copies."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from toolchain.core.safetensors import LIMIT_HEADER_BYTES, read_places

KINDS = st.sampled_from(["<f4", "<f8", "<f2", "|u1", "|i1", "<i8", "|b1"])
ARRAYS = st.builds(
    np.ones,
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    KINDS,
)
FILES = st.dictionaries(st.text(max_size=8), ARRAYS, max_size=5).map(save)
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file(header: object, body: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def library(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    tensors: Any = deserialize(data)  # type: ignore[no-untyped-call]
    return {n: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for n, t in tensors}


def ours(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {p.name: (p.dtype, p.shape, bytes(p.data)) for p in read_places(data)}


@given(FILES)
def test_places_are_what_the_library_copies(data: bytes) -> None:
    """Law: names, dtypes, shapes and bytes are the library's."""
    assert ours(data) == library(data)


@given(FILES, st.data())
def test_no_altered_file_passes_that_the_library_refuses(data: bytes, draw: st.DataObject) -> None:
    """Law: whatever is read here after a change of one byte, the library reads the same."""
    place = draw.draw(st.integers(0, len(data) - 1))
    changed = bytearray(data)
    changed[place] = draw.draw(st.integers(0, 255))
    try:
        tensors = ours(bytes(changed))
    except ValueError:
        return
    assert tensors == library(bytes(changed))


def test_nothing_is_copied() -> None:
    data = save({"a": np.arange(4, dtype=np.float32)})
    (place,) = read_places(data)
    assert place.data.obj is data


@pytest.mark.parametrize(
    "header",
    [
        {"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}},
        {"a": {**ENTRY, "data_offsets": [0, 4]}},
        {"a": {**ENTRY, "data_offsets": [8, 16]}},
        {"a": {**ENTRY, "data_offsets": [-8, 0]}},
        {"a": {**ENTRY, "shape": [-1, -2]}},
        {"a": {**ENTRY, "shape": [1 << 62, 1 << 62]}},
        {"a": {**ENTRY, "shape": [2.0]}},
        {"a": {**ENTRY, "shape": [True, 2]}},
        {"a": {**ENTRY, "shape": 2}},
        {"a": {**ENTRY, "dtype": "C64"}},
        {"a": {**ENTRY, "dtype": ["F32"]}},
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": None},
        {},
        [],
        b"",
        b"\xff\xfe",
        b'{"a": ' * 50_000,
        b"[" * 100_000,
    ],
)
def test_a_header_that_lies_is_refused(header: Any) -> None:
    data = file(header)
    with pytest.raises(ValueError):
        read_places(data)
    with pytest.raises((SafetensorError, UnicodeDecodeError)):
        library(data)


def test_a_key_that_nobody_knows_is_refused() -> None:
    """Stricter than the library, which ignores it."""
    with pytest.raises(ValueError, match="the entry"):
        read_places(file({"a": {**ENTRY, "more": 1}}))


def test_a_name_that_stands_twice_is_refused() -> None:
    text = json.dumps({"a": ENTRY}).encode()
    with pytest.raises(ValueError, match="twice"):
        read_places(file(text[:-1] + b", " + text[1:]))


def test_a_header_beyond_the_limit_is_refused() -> None:
    data = file(b'{"a":1}' + b" " * LIMIT_HEADER_BYTES)
    with pytest.raises(ValueError, match="header"):
        read_places(data)
    with pytest.raises(ValueError, match="header"):
        read_places(b"\xff" * 16)

"""Protobuf messages, field by field: the library's own verdict, and a bound on the work."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain.core.wire import BYTES, WireReader, signed, varint


def read(data: bytes, limit: int = 1000) -> list[tuple[int, int, object]]:
    fields = WireReader(limit).fields(memoryview(data))
    return [(n, k, bytes(v) if isinstance(v, memoryview) else v) for n, k, v in fields]


def node(names: list[str], number: int, real: float) -> onnx.NodeProto:
    return onnx.helper.make_node("Op", names, ["y"], name="n", i=number, f=real)


@given(
    st.lists(st.text(max_size=5), max_size=5), st.integers(-(2**63), 2**63 - 1), st.floats(width=32)
)
def test_fields_are_those_that_the_library_wrote(
    names: list[str], number: int, real: float
) -> None:
    message = node(names, number, real)
    fields = read(message.SerializeToString())
    assert [bytes(v).decode() for n, _, v in fields if n == 1] == names  # type: ignore[call-overload]
    inner = [read(v) for n, _, v in fields if n == 5]  # type: ignore[arg-type]
    integers = [v for attribute in inner for n, _, v in attribute if n == 3]
    assert [signed(v) for v in integers] == [number]  # type: ignore[arg-type]


def test_packed_numbers() -> None:
    tensor = onnx.TensorProto(dims=[1, 300, 2**40])
    ((number, kind, packed), *_) = read(tensor.SerializeToString())
    if kind == BYTES:
        assert isinstance(packed, bytes)
        assert list(WireReader(10).varints(memoryview(packed))) == [1, 300, 2**40]
    assert number == 1


@given(st.binary(max_size=200))
def test_any_bytes_end_in_fields_or_one_error(data: bytes) -> None:
    try:
        read(data)
    except ValueError:
        return


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\x0b", "wire type 3"),
        (b"\x0a\x05abc", "5 bytes where 3 are left"),
        (b"\x08" + b"\xff" * 11, "does not end"),
        (b"\x08", "does not end"),
        (b"\x0d\x00\x00", "4 bytes where 2 are left"),
    ],
)
def test_what_is_no_message(data: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read(data)


def test_the_number_of_fields_is_bounded_over_all_messages() -> None:
    reader = WireReader(3)
    assert len(list(reader.fields(memoryview(b"\x08\x01\x08\x01")))) == 2
    with pytest.raises(ValueError, match="more than 3 fields"):
        list(reader.varints(memoryview(b"\x01\x01")))


def test_a_varint_tells_where_it_ends() -> None:
    assert varint(memoryview(b"\x00\xac\x02\x07"), 1) == (300, 3)

"""Tensors: what goes out comes back, and nothing else comes in."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from toolchain.core.errors import DataError
from toolchain.device.serve.tensors import (
    _PIECE,
    DATATYPES,
    NamedTensor,
    elements,
    from_binary,
    from_json,
    texts,
    to_binary,
    to_json,
)

SHAPES = arrays.array_shapes(max_dims=4, max_side=4)


@st.composite
def tensors(draw: st.DrawFn, *, text: bool = False) -> NamedTensor:
    """Any tensor of any datatype; ``text``: one that JSON can say."""
    datatype = draw(st.sampled_from(sorted(DATATYPES)))
    shape = draw(SHAPES)
    if datatype == "BYTES":
        values = draw(
            st.lists(
                st.text(max_size=5).map(str.encode) if text else st.binary(max_size=5),
                min_size=int(np.prod(shape)),
                max_size=int(np.prod(shape)),
            )
        )
        array = np.empty(len(values), object)
        array[:] = values
        return NamedTensor("t", datatype, array.reshape(shape))
    dtype = DATATYPES[datatype]
    array = draw(arrays.arrays(dtype, shape, elements=arrays.from_dtype(dtype)))
    if text and dtype.kind == "f":
        array = np.nan_to_num(array)
    return NamedTensor("t", datatype, array)


@given(tensors())
def test_binary_data_come_back(tensor: NamedTensor) -> None:
    data = to_binary(tensor)
    array = from_binary(memoryview(data), tensor.datatype, list(tensor.array.shape))
    np.testing.assert_array_equal(array, tensor.array)
    assert array.dtype == tensor.array.dtype


@given(tensors(text=True))
def test_json_data_come_back(tensor: NamedTensor) -> None:
    flat = json.loads(json.dumps(to_json(tensor), allow_nan=False))
    array = from_json(flat, tensor.datatype, list(tensor.array.shape))
    np.testing.assert_array_equal(array, tensor.array)


@given(tensors(text=True))
def test_nested_data_are_flat_data(tensor: NamedTensor) -> None:
    shape = list(tensor.array.shape)
    values = to_json(tensor)
    nested = np.empty(len(values), object)
    nested[:] = values
    array = from_json(nested.reshape(shape).tolist(), tensor.datatype, shape)
    np.testing.assert_array_equal(array, from_json(values, tensor.datatype, shape))


@given(st.binary(max_size=60), st.sampled_from(sorted(DATATYPES)), SHAPES)
def test_any_bytes_are_a_tensor_or_an_error(
    data: bytes, datatype: str, shape: tuple[int, ...]
) -> None:
    try:
        array = from_binary(memoryview(data), datatype, list(shape))
    except DataError:
        return
    assert array.shape == shape
    assert to_binary(NamedTensor("t", datatype, array)) == data


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param([], id="no dimension"),
        pytest.param([1] * 9, id="nine dimensions"),
        pytest.param([0, 3], id="an empty batch"),
        pytest.param([-1, 3], id="a negative size"),
        pytest.param([True], id="true for 1"),
        pytest.param([2.0], id="2.0 for 2"),
        pytest.param(["2"], id="text for a number"),
        pytest.param(3, id="a number for a list"),
        pytest.param(None, id="null"),
        pytest.param({"0": 1}, id="an object"),
    ],
)
def test_what_is_no_shape_is_refused(shape: Any) -> None:
    with pytest.raises(DataError, match=r"expected (a shape|sizes)"):
        elements(shape)


def test_overflow_of_a_shape_does_not_wrap_around_to_few_elements() -> None:
    assert elements([2**32, 2**32]) == 2**64
    with pytest.raises(DataError, match=f"expected {2**66} bytes"):
        from_binary(memoryview(b""), "FP32", [2**32, 2**32])


def test_a_shape_of_a_petabyte_allocates_nothing() -> None:
    with pytest.raises(DataError, match="expected 1125899906842624 values"):
        from_json([1, 2], "FP32", [2**25, 2**25])
    with pytest.raises(DataError, match="expected 1125899906842624 BYTES elements"):
        from_binary(memoryview(b"\0\0\0\0"), "BYTES", [2**50])


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("FP32", "1.5"),
        ("FP32", True),
        ("FP32", None),
        ("FP32", [1.0]),
        ("FP32", 1e39),
        ("FP16", 70000),
        ("FP64", 10**400),
        ("FP32", float("nan")),
        ("FP64", float("inf")),
        ("UINT8", 256),
        ("UINT8", -1),
        ("UINT8", 1.0),
        ("INT64", 2**63),
        ("INT8", False),
        ("BOOL", 1),
        ("BYTES", 1),
        ("BYTES", "\ud800"),
    ],
)
def test_a_value_of_another_kind_or_range_is_refused(datatype: str, value: object) -> None:
    with pytest.raises(DataError, match="expected"):
        from_json([value], datatype, [1])
    with pytest.raises(DataError, match="expected"):
        from_json([[value]], datatype, [1, 1])


@pytest.mark.parametrize(
    "data",
    [
        pytest.param([[1, 2], [3]], id="ragged"),
        pytest.param([[1, 2], 3, 4], id="mixed"),
        pytest.param([[[1, 2]], [[3, 4]]], id="too deep"),
        pytest.param([[1, 2, 3, 4]], id="another nesting"),
        pytest.param([1, 2, 3], id="too few"),
        pytest.param([1, 2, 3, 4, 5], id="too many"),
        pytest.param([], id="none"),
        pytest.param({"0": 1}, id="an object"),
        pytest.param("1234", id="text"),
        pytest.param([[[[]]]], id="lists all the way down"),
    ],
)
def test_data_of_another_form_than_the_shape_are_refused(data: Any) -> None:
    with pytest.raises(DataError, match="expected"):
        from_json(data, "FP32", [2, 2])


@pytest.mark.parametrize(
    ("data", "datatype"),
    [
        pytest.param(b"\0" * 7, "FP32", id="truncated"),
        pytest.param(b"\0" * 9, "FP32", id="too long"),
        pytest.param(b"\x02\x01", "BOOL", id="a byte that is no BOOL"),
        pytest.param(struct.pack("<I", 9) + b"abc", "BYTES", id="a length beyond the data"),
        pytest.param(struct.pack("<I", 2**32 - 1), "BYTES", id="the largest length"),
        pytest.param(struct.pack("<II", 0, 0) + b"x", "BYTES", id="bytes left over"),
        pytest.param(b"\0\0", "BYTES", id="half a length"),
    ],
)
def test_lies_about_lengths_are_refused(data: bytes, datatype: str) -> None:
    with pytest.raises(DataError, match="expected"):
        from_binary(memoryview(data), datatype, [2])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_json_says_no_nan(value: float) -> None:
    tensor = NamedTensor("logits", "FP32", np.array([0, value], np.float32))
    with pytest.raises(DataError, match="logits: expected finite values for JSON"):
        to_json(tensor)
    assert len(to_binary(tensor)) == 8


def test_json_says_no_bytes_that_are_no_text() -> None:
    array = np.empty(1, object)
    array[0] = b"\xff"
    with pytest.raises(DataError, match="expected UTF-8 for JSON"):
        to_json(NamedTensor("label", "BYTES", array))


def test_more_values_than_one_piece_come_back_in_order() -> None:
    values = np.arange(2 * _PIECE + 3, dtype=np.int32)
    assert np.array_equal(from_json(values.tolist(), "INT32", [len(values)]), values)
    rows = values[: 2 * _PIECE].reshape(-1, 2)
    assert np.array_equal(from_json(rows.tolist(), "INT32", rows.shape), rows)
    with pytest.raises(DataError, match="expected values for INT32, got float"):
        from_json([*values.tolist(), 0.5], "INT32", [len(values) + 1])


def test_texts_keep_their_script() -> None:
    assert texts(["Käfer", "虫"], [2, 1])[1, 0].decode() == "虫"

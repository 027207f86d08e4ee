"""The outermost fields of an ONNX file, held against the package onnx."""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.real_parser import Graph
from toolchain.core.errors import ModelRefusedError
from toolchain.device.engine.wire import fields, require_plain


def model(**changes: object) -> onnx.ModelProto:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    shape = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "g", [shape], [result])
    return onnx.helper.make_model(graph, **changes)


def recursive() -> onnx.ModelProto:
    """A function that calls itself, which ends TensorRT-RTX 1.7's parser with a signal."""
    own = onnx.helper.make_opsetid("own", 1)
    call = onnx.helper.make_node("F", ["x"], ["y"], domain="own")
    function = onnx.helper.make_function("own", "F", ["x"], ["y"], [call], [own])
    return model(functions=[function])


def test_fields_are_those_of_the_message(graph: Graph) -> None:
    for proto in (model(), recursive(), onnx.load_model_from_string(graph("swap-if"))):
        present = {field.number for field, _ in proto.ListFields()}
        assert fields(proto.SerializeToString(), "it") == present


def test_models_of_ours_are_plain(graph: Graph) -> None:
    require_plain(graph("swap-if"), "swap-if")
    require_plain(graph("static-if"), "static-if")


def test_a_function_that_calls_itself(graph: Graph) -> None:
    with pytest.raises(ModelRefusedError, match="functions"):
        require_plain(recursive().SerializeToString(), "it")


@given(st.binary(max_size=200))
def test_any_bytes_end_in_an_answer_or_one_error(data: bytes) -> None:
    try:
        require_plain(data, "it")
    except ModelRefusedError:
        return
    assert 7 in fields(data, "it")


@given(st.integers(1, 400))
def test_any_truncation_ends_in_an_answer_or_one_error(cut: int) -> None:
    data = recursive().SerializeToString()
    shorter = data[: -min(cut, len(data))]
    try:
        require_plain(shorter, "it")
    except ModelRefusedError:
        return
    # Cut between two fields, it is a message of fewer.
    assert data.startswith(shorter)
    assert 25 not in fields(shorter, "it")

"""Requests and responses as bytes: one form comes in, every fault is one clear error."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.device.serve.test_tensors import tensors
from tests.support.asking import inference, pictures
from toolchain.core.errors import DataError
from toolchain.device.serve.limits import Limits
from toolchain.device.serve.protocol import (
    MANY_LISTS,
    MANY_VALUES,
    Request,
    RequestedOutput,
    Response,
    decode,
    encode,
    read_json,
)
from toolchain.device.serve.tensors import NamedTensor, to_binary

LIMITS = Limits(json_bytes=10_000)


def _body(*inputs: NamedTensor, **further: Any) -> tuple[bytes, str]:
    """A request with binary data, and its header."""
    data = [to_binary(one) for one in inputs]
    entries = [
        {
            "name": one.name,
            "datatype": one.datatype,
            "shape": list(one.array.shape),
            "parameters": {"binary_data_size": len(tail)},
        }
        for one, tail in zip(inputs, data, strict=True)
    ]
    document = json.dumps({"inputs": entries, **further}).encode()
    return document + b"".join(data), str(len(document))


@given(st.lists(tensors(), min_size=1, max_size=3), st.text(max_size=20))
def test_a_request_comes_back(drawn: list[NamedTensor], name: str) -> None:
    sent = [NamedTensor(f"t{i}", one.datatype, one.array) for i, one in enumerate(drawn)]
    request = decode(*_body(*sent, id=name), LIMITS)
    assert request.id == name
    for one, other in zip(request.inputs, sent, strict=True):
        assert (one.name, one.datatype) == (other.name, other.datatype)
        np.testing.assert_array_equal(one.array, other.array)


@given(tensors(text=True), st.booleans())
def test_a_response_can_be_read_as_a_request_is(tensor: NamedTensor, binary: bool) -> None:
    response = Response("m", "1", "7", ((tensor, RequestedOutput("t", binary)),), {"ms": 1.5})
    body, length = encode(response)
    assert (length is None) == (not binary)
    document = json.loads(body[:length])
    assert (document["model_name"], document["model_version"], document["id"]) == ("m", "1", "7")
    again = json.dumps({"inputs": document["outputs"]}).encode()
    tail = b"" if length is None else body[length:]
    (copy,) = decode(again + tail, str(len(again)), LIMITS).inputs
    np.testing.assert_array_equal(copy.array, tensor.array)


@given(st.binary(max_size=200), st.none() | st.text("0123456789 -+_xé", max_size=4))
def test_any_bytes_are_a_request_or_an_error(body: bytes, header: str | None) -> None:
    try:
        request = decode(body, header, LIMITS)
    except DataError as err:
        assert len(err.message) < 1000
    else:
        assert isinstance(request, Request)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["inputs", "outputs", "id", "parameters", "name", "shape", "datatype", "data"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(JSON_VALUES, JSON_VALUES, JSON_VALUES)
def test_any_json_is_a_request_or_an_error(inputs: Any, outputs: Any, asked: Any) -> None:
    document = {"inputs": inputs, "outputs": outputs, "parameters": asked}
    with pytest.raises(DataError):
        # No draw comes upon a datatype's name, so none is whole.
        decode(json.dumps(document).encode(), None, LIMITS)


def test_outputs_and_parameters_are_read() -> None:
    outputs = [
        {"name": "logits", "parameters": {"classification": 3, "binary_data": True}},
        {"name": "label"},
    ]
    body = inference(
        pictures(),
        id="a",
        outputs=outputs,
        parameters={"binary_data_output": True, "timeout": 2_500_000},
    )
    request = decode(body, None, Limits())
    assert request.outputs == (RequestedOutput("logits", True, 3), RequestedOutput("label", False))
    assert (request.id, request.binary, request.timeout_s) == ("a", True, 2.5)


def test_a_header_of_length_0_is_one_picture() -> None:
    (picture,) = decode(b"\xff\xd8 any file", "0", LIMITS).inputs
    assert (picture.name, picture.datatype, picture.array.tolist()) == (
        "image",
        "BYTES",
        [b"\xff\xd8 any file"],
    )


IMAGE = {"name": "image", "datatype": "FP32", "shape": [1], "data": [0.5]}
BINARY = {"name": "image", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        pytest.param({}, "got no inputs", id="no inputs"),
        pytest.param({"inputs": []}, "expected at least one", id="empty inputs"),
        pytest.param({"inputs": {}}, "expected a list", id="inputs that are no list"),
        pytest.param({"inputs": [IMAGE] * 65}, "at most 64, got 65", id="many inputs"),
        pytest.param({"inputs": [IMAGE] * 2}, "each input once", id="duplicate input"),
        pytest.param({"inputs": ["image"]}, "a JSON object, got 'image'", id="a bare name"),
        pytest.param({"inputs": [IMAGE | {"name": ""}]}, "a name", id="an empty name"),
        pytest.param({"inputs": [IMAGE | {"name": "n" * 201}]}, "a name", id="a long name"),
        pytest.param({"inputs": [IMAGE | {"name": 7}]}, "a name", id="a name that is a number"),
        pytest.param({"inputs": [IMAGE | {"datatype": "BF16"}]}, "got 'BF16'", id="bf16"),
        pytest.param({"inputs": [IMAGE | {"datatype": ["FP32"]}]}, "a datatype", id="unhashable"),
        pytest.param({"inputs": [IMAGE | {"shape": [2**64, 2**64]}]}, "values", id="huge shape"),
        pytest.param({"inputs": [IMAGE | BINARY]}, "both or neither", id="data twice"),
        pytest.param({"inputs": [IMAGE | {"more": 1}]}, "unknown 'more'", id="unknown key"),
        pytest.param({"inputs": [BINARY]}, "from 0 to 0", id="binary data that are not there"),
        pytest.param(
            {"inputs": [BINARY | {"parameters": {"binary_data_size": -4}}]},
            "-4",
            id="negative size",
        ),
        pytest.param(
            {"inputs": [BINARY | {"parameters": {"binary_data_size": True}}]},
            "True",
            id="true size",
        ),
        pytest.param(
            {"inputs": [IMAGE | {"parameters": {"shared_memory_region": "x"}}]},
            "got 'shared_memory_region'",
            id="shared memory",
        ),
        pytest.param(
            {"inputs": [IMAGE], "parameters": {"sequence_id": 7}},
            "got 'sequence_id'",
            id="sequence",
        ),
        pytest.param({"inputs": [IMAGE], "parameters": []}, "parameters", id="parameters list"),
        pytest.param({"inputs": [IMAGE], "parameters": {"timeout": -1}}, "timeout", id="timeout"),
        pytest.param({"inputs": [IMAGE], "parameters": {"timeout": 1.5}}, "timeout", id="half µs"),
        pytest.param({"inputs": [IMAGE], "id": 7}, "id: expected text", id="id"),
        pytest.param({"inputs": [IMAGE], "id": "i" * 201}, "id: expected text", id="long id"),
        pytest.param({"inputs": [IMAGE], "stray": 1}, "unknown 'stray'", id="stray key"),
        pytest.param({"inputs": [IMAGE], "outputs": [{}]}, "got no name", id="unnamed output"),
        pytest.param(
            {"inputs": [IMAGE], "outputs": [{"name": "a"}, {"name": "a"}]},
            "each output once",
            id="duplicate output",
        ),
        pytest.param(
            {
                "inputs": [IMAGE],
                "outputs": [{"name": "a", "parameters": {"classification": -1}}],
            },
            "classes",
            id="negative classes",
        ),
        pytest.param(
            {"inputs": [IMAGE], "outputs": [{"name": "a", "parameters": {"binary_data": 1}}]},
            "true or false",
            id="1 for true",
        ),
    ],
)
def test_a_request_that_is_none_is_refused(document: object, said: str) -> None:
    with pytest.raises(DataError) as caught:
        decode(json.dumps(document).encode(), None, LIMITS)
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(b"", "expected JSON", id="nothing"),
        pytest.param(b"[" * 5000, "a deep nesting", id="deeply nested lists"),
        pytest.param(b'{"a":' * 1600, "a deep nesting", id="deeply nested objects"),
        pytest.param(b'{"a":NaN}', "the number NaN", id="NaN"),
        pytest.param(b'{"a":-Infinity}', "the number -Infinity", id="infinity"),
        pytest.param(b'{"a":1,"a":2}', "the key 'a' twice", id="duplicate key"),
        pytest.param(b"\xff\xfe{\0}\0", "expected JSON", id="UTF-16"),
        pytest.param(b"\xef\xbb\xbf{}", "expected JSON", id="byte order mark"),
        pytest.param(b"[1]", "a JSON object", id="a list"),
        pytest.param(b'{"a":1} {"b":2}', "expected JSON", id="two documents"),
        pytest.param(b'{"a":' + b"9" * 5000 + b"}", "expected JSON", id="a number of 5000 digits"),
        pytest.param(b" " * 10_001, "at most 10000 bytes", id="too large"),
    ],
)
def test_json_that_is_none_is_refused(text: bytes, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read_json(text, 10_000)
    assert said in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    "header", ["-1", "+5", " 5", "5 ", "1e2", "0x5", "٣", "", "99999999999999", "1000"]
)
def test_a_header_length_that_lies_is_refused(header: str) -> None:
    with pytest.raises(DataError, match="Inference-Header-Content-Length: expected a number"):
        decode(inference(np.zeros((1, 1), np.float32)), header, LIMITS)


def test_binary_data_left_over_are_refused() -> None:
    body, header = _body(NamedTensor("image", "UINT8", np.zeros(3, np.uint8)))
    with pytest.raises(DataError, match="expected 3 bytes after the JSON, got 4"):
        decode(body + b"x", header, LIMITS)


def test_truncated_binary_data_are_refused() -> None:
    body, header = _body(NamedTensor("image", "UINT8", np.zeros(3, np.uint8)))
    with pytest.raises(DataError, match="expected a binary_data_size from 0 to 2, got 3"):
        decode(body[:-1], header, LIMITS)


# A value that is no number costs the parser as much as a number, and lets no other thread in.
PLAIN = {
    "empty lists": b"[],",
    "spaced lists": b"[ \n ],",
    "empty objects": b"{},",
    "texts": b'"",',
    "words": b"null,",
    "truths": b"true,",
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_body_of_anything_but_numbers_is_refused_before_it_is_parsed(name: str) -> None:
    """Attack: megabytes of brackets, which kept every thread of the server waiting for seconds."""
    value = PLAIN[name]
    body = b'{"a":[' + value * MANY_VALUES + value.rstrip(b",") + b"]}"
    with pytest.raises(DataError, match=f"at most {MANY_VALUES} strings, words and empty lists"):
        read_json(body, len(body))
    few = b'{"a":[' + value * 9 + value.rstrip(b",") + b"]}"
    assert len(read_json(few, len(few))["a"]) == 10


def test_a_body_of_lists_inside_lists_is_refused_before_it_is_parsed() -> None:
    """Attack: millions of lists, each with a number, which take as long to be taken apart."""
    body = b'{"a":[' + b"[[1]]," * (MANY_LISTS // 2) + b"1]}"
    with pytest.raises(DataError, match=f"at most {MANY_LISTS} lists in JSON, got"):
        read_json(body, len(body))


@pytest.mark.parametrize("row", [[1, -2], [0.5, 1e3], [[1.5], [2]]])
def test_the_interpreter_gets_a_turn_at_each_number(row: list[Any]) -> None:
    """Law: between two numbers of a body a function of Python runs, so other threads can."""
    body = json.dumps({"a": [row] * 100}).encode()
    calls = 0

    def count(frame: Any, event: str, _: Any) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code.co_name in ("_whole", "_real")

    sys.setprofile(count)
    try:
        value = read_json(body, len(body))
    finally:
        sys.setprofile(None)
    assert value == json.loads(body)
    assert calls == 200


@pytest.mark.parametrize("text", [b"1" * 401, b"0." + b"1" * 400, b"-" + b"1" * 400])
def test_a_number_that_is_too_long_is_refused(text: bytes) -> None:
    with pytest.raises(DataError, match=r"a number of 40[12] characters"):
        read_json(b'{"a":' + text + b"}", 10_000)

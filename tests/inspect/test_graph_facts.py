"""ONNX files, ours and foreign, by what they hold."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from toolchain.core.errors import UsageError
from toolchain.inspect.graph_facts import graph, parsed

FLOAT = TensorProto.FLOAT


def branch(depth: int, relus: int) -> onnx.GraphProto:
    """A graph of ``relus`` nodes that holds another of its kind in an If, ``depth`` times."""
    nodes = [helper.make_node("Relu", ["x"], [f"y{depth}_{i}"]) for i in range(relus)]
    if depth:
        inner = branch(depth - 1, relus)
        nodes.append(
            helper.make_node("If", ["c"], [f"z{depth}"], then_branch=inner, else_branch=inner)
        )
    out = helper.make_tensor_value_info(f"y{depth}_0", FLOAT, None)
    return helper.make_graph(nodes, f"g{depth}", [], [out])


def model(main: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(
        main, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    )


def written(folder: Path, made: onnx.ModelProto) -> Path:
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    return folder / "m.onnx"


@settings(max_examples=20, deadline=None)
@given(depth=st.integers(0, 4), relus=st.integers(1, 3))
def test_law_every_node_is_counted_once(depth: int, relus: int) -> None:
    """Nodes outside and inside branches, and the branches, as they were built."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        facts = graph(written(Path(folder), model(branch(depth, relus))))
    graphs = 2 ** (depth + 1) - 1
    assert facts.branches == graphs - 1
    assert facts.nodes + facts.branch_nodes == graphs * relus + (2**depth - 1)
    assert facts.nodes == sum(facts.operators.values()) == relus + bool(depth)
    assert facts.branch_nodes == sum(facts.branch_operators.values())


def test_a_foreign_model_with_inputs_of_every_sort(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", FLOAT, [2], [1.0, 2.0])
    outside = helper.make_tensor("e", FLOAT, [], [0.0])
    outside.ClearField("float_data")
    outside.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../../secret"), ("length", "9" * 5000)):
        entry = outside.external_data.add()
        entry.key, entry.value = key, value
    main = helper.make_graph(
        [
            helper.make_node("Add", ["x", "w"], ["y"]),
            helper.make_node("Own", ["y"], ["z"], domain="own"),
        ],
        "m",
        [
            helper.make_tensor_value_info("x", FLOAT, ["batch", 3, None]),
            helper.make_tensor_value_info("w", FLOAT, [2]),
        ],
        [helper.make_tensor_value_info("z", 99, None)],
        initializer=[weight, outside],
    )
    facts = graph(written(tmp_path, model(main)))
    assert facts.role == ""
    assert [(port.name, port.dtype, port.shape) for port in facts.inputs] == [
        ("x", "float32", ("batch", 3, "?"))
    ]
    assert facts.outputs[0].dtype == "unknown (99)"
    assert facts.operators == {"Add": 1, "own.Own": 1}
    assert facts.opsets == {"ai.onnx": 18, "own": 1}
    assert facts.inline_tensors == 1
    assert [(one.location, one.tensors, one.size_bytes) for one in facts.external] == [
        ("../../secret", 1, 0)
    ]


@pytest.mark.parametrize(
    "data", [b"\x08\x0a", b"\x08", b"\x3a\xff\xff\xff", b"\x08\x0a" + b"\x3a\x02" * 9]
)
def test_what_is_no_model_is_a_usage_error(data: bytes) -> None:
    with pytest.raises(UsageError, match="m: expected an ONNX model"):
        parsed(Path("m"), data)


@pytest.mark.parametrize(
    "word", [b"an_op", b"an_input", b"an_output", b"a_domain", b"a_dim", b"a_key"]
)
def test_text_that_is_not_utf8_is_one_error(tmp_path: Path, word: bytes) -> None:
    node = helper.make_node("an_op", ["an_input"], ["an_output"], domain="a_domain")
    ports = [helper.make_tensor_value_info("an_input", 1, ["a_dim"])]
    outs = [helper.make_tensor_value_info("an_output", 1, None)]
    made = helper.make_model(helper.make_graph([node], "g", ports, outs))
    helper.set_model_props(made, {"a_key": "value"})
    data = made.SerializeToString().replace(word, b"\xff" + word[1:])
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(UsageError, match="expected UTF-8"):
        graph(tmp_path / "m.onnx")

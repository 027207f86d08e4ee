"""What a bundle's graph may hold: a closed list, and bounds on what a file may ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from toolchain.bundle import graphs
from toolchain.bundle.graphs import OPERATORS, graph_files, require_graph
from toolchain.bundle.linkage import STATIC_IF, SWAP_IF
from toolchain.core.errors import BundleError

FILES = ("weights.safetensors",)
Attack = Callable[[onnx.ModelProto], None]


def external(name: str, shape: list[int], **entries: object) -> onnx.TensorProto:
    tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    size = 4 * int(np.prod(shape))
    places = {"location": FILES[0], "offset": 0, "length": size, **entries}
    for key, value in places.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def constant(name: str, values: object, dtype: type = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def good() -> onnx.ModelProto:
    """A conditional, external and inline tensors: what a linked graph is made of."""
    value = helper.make_tensor_value_info
    floats = TensorProto.FLOAT
    branches = {
        f"{word}_branch": helper.make_graph(
            [helper.make_node(op, ["image"], [word])], word, [], [value(word, floats, [1, 3])]
        )
        for word, op in (("then", "Relu"), ("else", "Identity"))
    }
    nodes = [
        helper.make_node("Equal", ["one", "one"], ["flag"]),
        helper.make_node("If", ["flag"], ["kept"], name="gate", **branches),
        helper.make_node("MatMul", ["kept", "block.weight"], ["logits"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("image", floats, [1, 3])],
        [value("logits", floats, [1, 2])],
        [constant("one", 1), external("block.weight", [3, 2])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def added(model: onnx.ModelProto, operator: str, operands: list[str], **attributes: Any) -> None:
    model.graph.node.append(
        helper.make_node(operator, operands, ["more"], name="bomb", **attributes)
    )


def functions(model: onnx.ModelProto) -> None:
    call = helper.make_node("F", ["x"], ["y"], domain="own")
    opsets = [helper.make_opsetid("own", 1)]
    model.functions.append(helper.make_function("own", "F", ["x"], ["y"], [call], opsets))


def other_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def operator_of_another_domain(model: onnx.ModelProto) -> None:
    model.graph.node[2].domain = "com.microsoft"


def loop(model: onnx.ModelProto) -> None:
    added(model, "Loop", ["one"], body=helper.make_graph([], "b", [], []))


def random_numbers(model: onnx.ModelProto) -> None:
    added(model, "RandomNormal", [], shape=[1])


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[2].op_type = "Xyz"


def graph_in_another_operator(model: onnx.ModelProto) -> None:
    added(model, "Relu", ["image"], body=helper.make_graph([], "b", [], []))


def password_file(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(external("x", [2], location="/etc/passwd"))


def file_above(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(external("x", [2], location="../weights.safetensors"))


def no_location(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(external("x", [2], location=None))


def places_without_external(model: onnx.ModelProto) -> None:
    tensor = external("x", [2])
    tensor.data_location = TensorProto.DEFAULT
    model.graph.initializer.append(tensor)


def negative_offset(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(external("x", [2], offset=-8))


def other_length(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(external("x", [2], length=12))


def checksum(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(external("x", [2], checksum="00"))


def large_constant(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(constant("x", np.zeros(129)))


def shape_without_values(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="x", dims=[1 << 40], data_type=TensorProto.FLOAT, raw_data=b"")
    model.graph.initializer.append(tensor)


def negative_shape(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(external("x", [-2]))


def deep_rank(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(constant("x", np.zeros((1,) * 17)))


def data_type_0(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 0


def texts(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(
        TensorProto(name="x", dims=[1], data_type=TensorProto.STRING, string_data=[b"a"])
    )


def values_in_another_form(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("x", TensorProto.INT64, [1], [1]))


def sparse(model: onnx.ModelProto) -> None:
    values, indices = constant("v", [1.0], np.float32), constant("i", [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 40]))


def zeros_of_nothing(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(constant("size", [1 << 20, 1 << 20]))
    added(model, "ConstantOfShape", ["size"])


def expanded(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(constant("size", [1 << 14, 1 << 14]))
    added(model, "Expand", ["image", "size"])


def tiled(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(constant("size", [1, 1 << 30]))
    added(model, "Tile", ["image", "size"])


def resized(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(constant("scales", [1, 1, 1e5, 1e5], np.float32))
    added(model, "Resize", ["image", "", "scales"])


def resized_by_nan(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(constant("scales", [np.nan], np.float32))
    added(model, "Resize", ["image", "", "scales"])


def sized(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(constant("sizes", [1, 1, 1 << 20, 1 << 20]))
    added(model, "Resize", ["image", "", "", "sizes"])


def padded(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(constant("pads", [0, 1 << 40, 0, 0]))
    added(model, "Pad", ["image", "pads"])


def counted(model: onnx.ModelProto) -> None:
    for name, value in (("from", 0), ("to", 1 << 40), ("step", 1)):
        model.graph.initializer.append(constant(name, value))
    added(model, "Range", ["from", "to", "step"])


def counted_in_place(model: onnx.ModelProto) -> None:
    for name, value in (("from", 0), ("to", 1), ("step", 0)):
        model.graph.initializer.append(constant(name, value))
    added(model, "Range", ["from", "to", "step"])


def bomb_in_a_branch(model: onnx.ModelProto) -> None:
    """The size stands in the graph around the branch."""
    model.graph.initializer.append(constant("size", [1 << 20, 1 << 20]))
    branch = model.graph.node[1].attribute[0].g
    branch.node.append(helper.make_node("ConstantOfShape", ["size"], ["more"]))


def huge_attribute(model: onnx.ModelProto) -> None:
    added(model, "MaxPool", ["image"], kernel_shape=[1, 1], pads=[1 << 40, 0, 0, 0])


def no_utf8(model: onnx.ModelProto) -> bytes:
    model.graph.node[2].op_type = "XYZXYZ"
    data: bytes = model.SerializeToString()
    return data.replace(b"XYZXYZ", b"X\xa4ZX\xa4Z")


def nested(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [])
    for _ in range(graphs.LIMIT_DEPTH + 1):
        node = helper.make_node("If", ["flag"], ["y"], then_branch=inner)
        inner = helper.make_graph([node], "outer", [], [])
    model.graph.node.append(inner.node[0])


def two_graphs(model: onnx.ModelProto) -> bytes:
    """A message holds a field twice: parsers merge the two, or take the last."""
    other = onnx.ModelProto(graph=model.graph)
    data: bytes = model.SerializeToString()
    return data + bytes(other.SerializeToString())


def training(model: onnx.ModelProto) -> None:
    model.training_info.add()


def unknown_field(model: onnx.ModelProto) -> bytes:
    data: bytes = model.SerializeToString()
    return data + b"\xfa\x07\x00"


ATTACKS: dict[str, tuple[Callable[[onnx.ModelProto], bytes | None], str]] = {
    "functions": (functions, "functions of its own"),
    "other domain": (other_domain, "default domain, got 'com.microsoft'"),
    "operator of another domain": (operator_of_another_domain, "default domain"),
    "loop": (loop, "got 'Loop'"),
    "random numbers": (random_numbers, "got 'RandomNormal'"),
    "unknown operator": (unknown_operator, "got 'Xyz'"),
    "graph in another operator": (graph_in_another_operator, "plain attributes of Relu"),
    "password file": (password_file, "got one in '/etc/passwd'"),
    "file above": (file_above, "got one in '../weights"),
    "no location": (no_location, "expected a tensor in weights.safetensors"),
    "places without external": (places_without_external, "expected a tensor in"),
    "negative offset": (negative_offset, "an offset and a length"),
    "other length": (other_length, "expected 8 bytes, got 12"),
    "checksum": (checksum, "an offset and a length"),
    "large constant": (large_constant, "at most 1024 bytes"),
    "shape without values": (shape_without_values, "at most 1024 bytes"),
    "negative shape": (negative_shape, "an offset and a length"),
    "deep rank": (deep_rank, "rank 0 to 16"),
    "data type 0": (data_type_0, "data type 0"),
    "texts": (texts, "got field 6"),
    "values in another form": (values_in_another_form, "got field 7"),
    "sparse": (sparse, "got field 15"),
    "zeros of nothing": (zeros_of_nothing, "a ConstantOfShape that makes at most"),
    "expanded": (expanded, "a Expand that makes"),
    "tiled": (tiled, "a Tile that makes"),
    "resized": (resized, "a Resize that makes"),
    "resized by NaN": (resized_by_nan, "a Resize that makes"),
    "sized": (sized, "a Resize that makes"),
    "padded": (padded, "a Pad that makes"),
    "counted": (counted, "a Range that makes"),
    "counted in place": (counted_in_place, "a Range that makes"),
    "bomb in a branch": (bomb_in_a_branch, "a ConstantOfShape that makes"),
    "huge attribute": (huge_attribute, "numbers up to 65536"),
    "no UTF-8": (no_utf8, "expected UTF-8"),
    "nested": (nested, "graphs inside each other"),
    "two graphs": (two_graphs, "one graph, got 2"),
    "training": (training, "got field 20"),
    "unknown field": (unknown_field, "got field 127"),
}


def test_what_the_linker_writes_passes() -> None:
    summary = require_graph(good().SerializeToString(), "g.onnx", files=FILES)
    assert summary.operators == {"Equal", "If", "Relu", "Identity", "MatMul"}
    assert (summary.nodes, summary.tensor_bytes) == (5, 24)


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_an_attack_is_refused_before_a_library_sees_it(name: str) -> None:
    """One message that names the file and what is wrong."""
    attack, message = ATTACKS[name]
    model = good()
    data = attack(model) or model.SerializeToString()
    with pytest.raises(BundleError, match=r"^g\.onnx: ") as caught:
        require_graph(data, "g.onnx", files=FILES)
    assert message in caught.value.message
    assert caught.value.fix


@given(st.binary(max_size=300))
def test_any_bytes_end_in_a_verdict(data: bytes) -> None:
    with pytest.raises(BundleError):
        require_graph(data, "g.onnx", files=FILES)


GOOD = good().SerializeToString()


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 7))
def test_a_flipped_bit_never_breaks_the_reader(place: int, bit: int) -> None:
    data = bytearray(GOOD)
    data[place] ^= 1 << bit
    try:
        require_graph(bytes(data), "g.onnx", files=FILES)
    except BundleError:
        return


def test_tensors_that_stand_twice_count_twice() -> None:
    """Attack: a small file beside the graph, named so often that a session needs gigabytes."""
    model = good()
    for number in range(9):
        model.graph.initializer.append(external(f"x{number}", [3, 2]))
    data = model.SerializeToString()
    assert require_graph(data, "g.onnx", files=FILES, limit_tensor_bytes=240).tensor_bytes == 240
    with pytest.raises(BundleError, match="at most 239 bytes in all, got 240"):
        require_graph(data, "g.onnx", files=FILES, limit_tensor_bytes=239)


def test_a_graph_with_too_many_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "LIMIT_NODES", 4)
    with pytest.raises(BundleError, match="at most 4 nodes"):
        require_graph(GOOD, "g.onnx", files=FILES)


def test_a_graph_of_too_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "LIMIT_GRAPH_BYTES", len(GOOD) - 1)
    with pytest.raises(BundleError, match="bytes of graph"):
        require_graph(GOOD, "g.onnx", files=FILES)


def test_only_a_folded_domain_reads_the_slots_file() -> None:
    assert graph_files(SWAP_IF) == ("weights.safetensors",)
    assert graph_files(STATIC_IF) == ("weights.safetensors", "slots.safetensors")


def test_operators_are_of_the_default_domain() -> None:
    """Each is one of ONNX's own, and none of those that loop, draw or hold other things."""
    assert all(onnx.defs.has(name) for name in OPERATORS)
    assert not OPERATORS & {"Loop", "Scan", "SequenceMap", "Optional", "RandomNormal", "Constant"}

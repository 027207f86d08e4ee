"""Drawing graphs by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain.core.errors import LinkError
from toolchain.export.graph.builder import GraphBuilder, input_names, region, value_name
from toolchain.export.graph.store import to_bytes

F32 = ir.DataType.FLOAT


def chain(links: list[tuple[int, int]]) -> GraphBuilder:
    """Values v0 (input), v1, v2, ...: each the sum of two earlier ones."""
    builder = GraphBuilder("chain", opset=18)
    builder.input("v0", F32, [1])
    for i, (a, b) in enumerate(links, start=1):
        builder.node("Add", [f"v{a % i}", f"v{b % i}"], f"v{i}")
    return builder


links = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=12)


@given(links)
def test_the_same_calls_give_the_same_bytes(drawn: Any) -> None:
    """Law: drawing is deterministic."""
    last = f"v{len(drawn)}"
    bytes_ = []
    for _ in range(2):
        builder = chain(drawn)
        builder.typed(last, F32, [1])
        bytes_.append(to_bytes(builder.model([last], ir_version=10, metadata={"b": "2", "a": "1"})))
    assert bytes_[0] == bytes_[1]


@given(links, st.integers(0, 12), st.integers(0, 12))
def test_a_region_is_what_a_target_needs(drawn: Any, target: Any, stop: Any) -> None:
    """Law: a region is closed under inputs down to its stops, in order, with nothing to spare."""
    nodes = chain(drawn).nodes
    target, stop = target % len(drawn) + 1, stop % (len(drawn) + 1)
    members = region(nodes, [f"v{target}"], [f"v{stop}"])
    order = [nodes.index(node) for node in members]
    assert order == sorted(order)
    made = {value_name(v) for node in members for v in node.outputs}
    assert f"v{stop}" not in made
    for node in members:
        for name in input_names(node):
            assert name in made or name in ("v0", f"v{stop}")
        name = value_name(node.outputs[0])
        assert name == f"v{target}" or any(name in input_names(other) for other in members)


def test_a_name_is_defined_once() -> None:
    builder = chain([(0, 0)])
    with pytest.raises(LinkError, match="defines 'v1' twice"):
        builder.node("Relu", ["v0"], "v1")


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(LinkError, match="reads 'v9', which nothing before it computes"):
        chain([(0, 0)]).node("Relu", ["v9"], "y")


def test_a_branch_sees_the_graph_around_and_not_the_other_way() -> None:
    outer = chain([(0, 0)])
    inner = GraphBuilder("inner", opset=18, outer=outer)
    inner.node("Relu", ["v1"], "deep")
    assert inner.has("v0")
    assert not outer.has("deep")
    assert not inner.graph(["deep"]).opset_imports.get("")


def test_a_constant_asked_for_twice_is_one() -> None:
    builder = chain([(0, 0)])
    for _ in range(2):
        assert builder.constant("zero", 0.0, np.float32) == "zero"
    assert list(builder.initializers) == ["zero"]


def test_a_copy_takes_renamed_inputs_and_keeps_attributes() -> None:
    builder = GraphBuilder("source", opset=18)
    builder.input("x", F32, [1, 2])
    builder.node("Softmax", ["x"], "y", {"axis": 1})
    other = GraphBuilder("copy", opset=18)
    other.input("a", F32, [1, 2])
    other.copy(builder.nodes[0], {"x": "a", "y": "b"})
    (node,) = other.nodes
    assert input_names(node) == ["a"]
    assert value_name(node.outputs[0]) == node.name == "b"
    assert node.attributes["axis"].as_int() == 1

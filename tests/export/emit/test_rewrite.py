"""Walking and rewriting models: batch, shapes, places; what is malformed is refused by node."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.cases import made
from tests.support.small_models import TOYS, checked, draw, linked, run, text
from toolchain.core.errors import ModelRefusedError
from toolchain.export.emit.rewrite import dims, fix_batch, infer, known_dims, nodes, where
from toolchain.export.graph.stage import stage

# Captured once: these tests stay beside the others that capture.
pytestmark = pytest.mark.usefixtures("plain")


@pytest.mark.parametrize("name", TOYS)
def test_a_segment_of_fixed_batch_answers_as_the_free_one(name: str) -> None:
    staged = stage(made(name).loaded())
    every = [s for one in staged.sites for s in (one.side, one.opened, one.closed) if s]
    for segment in [*every, staged.tail]:
        fixed = fix_batch(segment, 1)
        checked(fixed)
        inputs = {
            v.name or "": np.abs(draw([3 if d is None else d for d in dims(v) or ()], seed))
            for seed, v in enumerate(fixed.graph.inputs)
        }
        got, want = run(fixed, inputs), run(segment, inputs)
        assert all(np.array_equal(got[key], want[key]) for key in want)
        free = [d for v in fixed.graph.inputs for d in dims(v) or ()]
        assert None not in free or segment is staged.tail


@pytest.mark.parametrize("name", ["plain", "tokens", "one_pixel"])
def test_every_shape_of_a_linked_graph_is_found_branches_included(name: str) -> None:
    model = infer(linked(made(name)))
    unknown = [
        value.name
        for node in nodes(model)
        for value in node.outputs
        if dims(value) is None or None in (dims(value) or ())
    ]
    assert unknown == ["logits"]  # the class count is free


def test_inferred_shapes_are_those_that_come_out() -> None:
    model = infer(linked(made("tokens"), "static"))
    images = made("tokens").case.images(1).numpy()
    for value in list(model.graph.outputs):
        shape = run(model, {"image": images})[value.name or ""].shape
        assert all(
            side in (None, size) for side, size in zip(dims(value) or (), shape, strict=True)
        )


def test_a_node_is_placed_by_the_module_whose_tensor_it_reads_or_follows() -> None:
    places = {node.name: where(node) for node in nodes(linked(made("plain")))}
    assert "(Conv, at block00.adaptor.reduce)" in places["w1"]
    assert "in block00/then" in places["v1"]
    assert "at blocks.0.conv1" in places["v1"]
    assert "after blocks.0.conv1" in places["v2"]


def test_a_model_whose_types_contradict_each_other_is_refused() -> None:
    model = text("""<ir_version: 10, opset_import: ["": 18]>
        g (float[2] x, int64[2] n) => (float[2] y) { y = Add (x, n) }""")
    with pytest.raises(ModelRefusedError, match="contradict"):
        infer(model)


def test_a_free_dimension_is_refused_by_node() -> None:
    model = text("""<ir_version: 10, opset_import: ["": 18]>
        g (float[N,2] x) => (float[N,2] y) { [it] y = Neg (x) }""")
    with pytest.raises(ModelRefusedError, match="'it'"):
        known_dims(model.graph.inputs[0], model.graph[0])


def test_tensors_are_not_copied_into_the_inference() -> None:
    """A weight of any size is a reference to itself; shape arithmetic keeps its small constants."""
    big = draw((64, 64, 3, 3))
    source = """<ir_version: 10, opset_import: ["": 18]>
        g (float[1,64,8,8] x) => (float[P,Q] y) { c = Conv (x, k) y = Reshape (c, s) }"""
    model = text(source, {"k": big, "s": np.array([8, -1])})
    tensor = model.graph.initializers["k"].const_value
    infer(model)
    assert model.graph.initializers["k"].const_value is tensor
    assert dims(model.graph[1].outputs[0]) == (8, 288)
    assert isinstance(model.graph[0].outputs[0].shape, ir.Shape)

"""Slots through MatMul: the same sums as Conv, and no Conv left that a slot feeds."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.cases import made
from tests.support.small_models import checked, draw, feeds, linked, operators, run, text
from toolchain.core.errors import ModelRefusedError
from toolchain.export.emit.matmul import through_matmul
from toolchain.export.emit.rewrite import fed, known_dims, nodes

# Captured once: these tests stay beside the others that capture.
pytestmark = pytest.mark.usefixtures("plain")


def slot_convolutions(model: ir.Model) -> list[ir.Node]:
    """Return the convolutions that read a run-time input as kernel or bias."""
    return [
        node
        for node in nodes(model)
        if node.op_type == "Conv" and any(fed(value) for value in node.inputs[1:])
    ]


@st.composite
def windows(draw: st.DrawFn) -> dict[str, object]:
    groups = draw(st.sampled_from([1, 2, 3]))
    return {
        "group": groups,
        "channels": groups * draw(st.integers(1, 3)),
        "outputs": groups * draw(st.integers(1, 3)),
        "kernel": (draw(st.integers(1, 4)), draw(st.integers(1, 3))),
        "grid": (draw(st.integers(7, 9)), draw(st.integers(3, 6))),
        "pads": tuple(draw(st.integers(0, 2)) for _ in range(4)),
        "strides": (draw(st.integers(1, 2)), draw(st.integers(1, 3))),
        "dilations": (draw(st.integers(1, 2)), 1),
        "bias": draw(st.booleans()),
    }


def convolution(w: dict, kernel_fed: bool = True) -> ir.Model:  # type: ignore[type-arg]
    shape = [w["outputs"], w["channels"] // w["group"], *w["kernel"]]
    sides = [1, w["channels"], *w["grid"]]
    weight = f"float{shape} k"
    constants = {} if kernel_fed else {"k": draw(shape, 1)}
    slots = ([weight] if kernel_fed else []) + ([f"float[{w['outputs']}] b"] if w["bias"] else [])
    source = f"""<ir_version: 10, opset_import: ["": 18]>
    g ({", ".join([f"float{sides} x", *slots])}) => (float[1,{w["outputs"]},P,Q] y)
    {{ y = Conv <group: int = {w["group"]}, pads: ints = {list(w["pads"])},
        strides: ints = {list(w["strides"])}, dilations: ints = {list(w["dilations"])}>
        (x, k{", b" if w["bias"] else ""}) }}"""
    return text(source, constants)


@given(windows())
@settings(max_examples=50, deadline=None)
def test_any_window_gives_what_conv_gives(w: dict) -> None:  # type: ignore[type-arg]
    model = convolution(w)
    changed = through_matmul(model)
    checked(changed)
    inputs = {
        v.name or "": draw(known_dims(v, model.graph[0]), seed)
        for seed, v in enumerate(model.graph.inputs)
    }
    got, want = run(changed, inputs)["y"], run(model, inputs)["y"]
    magnitude = run(model, {name: np.abs(array) for name, array in inputs.items()})["y"]
    assert got.shape == want.shape
    assert (np.abs(got - want) <= 1e-6 * np.abs(magnitude)).all()
    assert not slot_convolutions(changed)


def window(**changes: object) -> dict[str, object]:
    plain = {
        "group": 1,
        "channels": 4,
        "outputs": 6,
        "kernel": (1, 1),
        "grid": (5, 7),
        "pads": (0, 0, 0, 0),
        "strides": (1, 1),
        "dilations": (1, 1),
        "bias": True,
    }
    return {**plain, **changes}


def test_a_pointwise_kernel_needs_one_product_and_no_view() -> None:
    assert operators(through_matmul(convolution(window()))) == {"Add": 1, "MatMul": 1, "Reshape": 4}


def test_a_larger_kernel_needs_one_frozen_convolution_and_one_product() -> None:
    changed = through_matmul(convolution(window(kernel=(3, 3), pads=(1, 1, 1, 1), group=2)))
    assert operators(changed) == {"Add": 1, "Conv": 1, "MatMul": 1, "Reshape": 4}


def test_a_frozen_kernel_keeps_its_convolution_and_a_fed_bias_is_added() -> None:
    changed = through_matmul(convolution(window(), kernel_fed=False))
    assert operators(changed) == {"Add": 1, "Conv": 1, "Reshape": 1}
    assert not slot_convolutions(changed)
    inputs = {"x": draw((1, 4, 5, 7)), "b": draw((6,))}
    want = run(convolution(window(), kernel_fed=False), inputs)["y"]
    np.testing.assert_allclose(run(changed, inputs)["y"], want, atol=1e-6)


@pytest.mark.parametrize("name", ["plain", "grouped", "inverted", "tokens"])
def test_a_linked_graph_answers_the_same_and_no_slot_feeds_a_conv(name: str) -> None:
    toy = made(name)
    model = linked(toy)
    assert slot_convolutions(model)
    changed = through_matmul(model)
    checked(changed)
    assert not slot_convolutions(changed)
    for seed in range(3):
        got, want = run(changed, feeds(toy, seed)), run(model, feeds(toy, seed))
        for key, expected in want.items():
            span = max(float(np.ptp(expected)), 1.0)
            assert np.abs(got[key] - expected).max() <= 1e-5 * span, key


def test_the_given_model_is_left_alone() -> None:
    model = convolution(window())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    through_matmul(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_frozen_convolutions_are_left_alone() -> None:
    model = linked(made("plain"), "static")
    assert operators(through_matmul(model)) == operators(model)


def test_a_batch_is_refused_by_node() -> None:
    source = """<ir_version: 10, opset_import: ["": 18]>
    g (float[2,4,5,5] x, float[6,4,1,1] block00.adaptor.reduce.weight) => (float[2,6,5,5] y)
    { y = Conv (x, block00.adaptor.reduce.weight) }"""
    source = source.replace("block00.adaptor.reduce.weight", "k")
    with pytest.raises(ModelRefusedError, match=r"node .*Conv.*batch 1"):
        through_matmul(text(source))


def test_a_free_grid_is_refused_by_node() -> None:
    source = """<ir_version: 10, opset_import: ["": 18]>
    g (float[1,4,H,W] x, float[6,4,1,1] k) => (float[1,6,H,W] y) { y = Conv (x, k) }"""
    with pytest.raises(ModelRefusedError, match="known shape"):
        through_matmul(text(source))

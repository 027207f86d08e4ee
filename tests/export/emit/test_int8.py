"""Q/DQ round frozen products: everywhere, branches included, and nowhere else."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.export.emit.test_fp16 import segments
from tests.support.cases import CASES, made
from tests.support.parsing import parse
from tests.support.small_models import checked, draw, feeds, linked, operators, run, text
from toolchain.bundle.linkage import Flavour, Linkage
from toolchain.core.errors import PrecisionError
from toolchain.export.emit.accuracy import answers, measure
from toolchain.export.emit.calibrate import Ranges, ranges
from toolchain.export.emit.int8 import LEVELS, channel_scales, frozen, rounded_weight, to_int8
from toolchain.export.emit.owners import is_domain, walk
from toolchain.export.emit.rewrite import fix_batch
from toolchain.export.graph import store

FLAVOURS: tuple[Flavour, ...] = ("swap", "static")
HEAD = '<ir_version: 10, opset_import: ["": 18]>'
_FOUND: dict[str, Ranges] = {}


def found(name: str) -> Ranges:
    """The ranges of a toy, calibrated once per run."""
    if name not in _FOUND:
        case = made(name)
        _FOUND[name] = ranges(case.loaded(), case.slots, case.case.images(64, 1).numpy())
    return _FOUND[name]


def quantised(name: str, flavour: Flavour = "swap") -> ir.Model:
    return to_int8(linked(made(name), flavour), found(name).amax)


def maker(node: ir.Node, at: int) -> ir.Node:
    """The node that makes an input."""
    value = node.inputs[at]
    assert value is not None
    made_by = value.producer()
    assert made_by is not None, f"{node.name} reads {value.name}, which nothing quantises"
    return made_by


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", CASES)
def test_every_frozen_product_of_the_backbone_is_quantised(name: str, flavour: Flavour) -> None:
    products = {
        node.outputs[0].name: frozen(node)
        for node in made(name).loaded().backbone.graph
        if frozen(node)
    }
    model = quantised(name, flavour)
    checked(model)
    names = set()
    for _, node in walk(model):
        if node.outputs[0].name not in products:
            continue
        names.add(node.outputs[0].name)
        for at in (0, 1):
            again = maker(node, at)
            small = maker(again, 0)
            assert (again.op_type, small.op_type) == ("DequantizeLinear", "QuantizeLinear")
            assert again.inputs[1] is small.inputs[1]
            assert again.graph is small.graph is node.graph
    assert names == products.keys()


@pytest.mark.parametrize("name", CASES)
def test_the_domain_and_the_interface_stay_as_they_were(name: str) -> None:
    before, after = linked(made(name)), quantised(name)
    nodes = {n.outputs[0].name: n for _, n in walk(before) if is_domain(n)}
    for _, node in walk(after):
        if node.outputs[0].name in nodes:
            old = nodes[node.outputs[0].name]
            assert [v and v.name for v in node.inputs] == [v and v.name for v in old.inputs]
    for part in ("inputs", "outputs"):
        types = [[(v.name, v.dtype) for v in getattr(m.graph, part)] for m in (before, after)]
        assert types[0] == types[1]


@pytest.mark.parametrize("name", CASES)
def test_answers_stay_within_what_int8_may_change(name: str) -> None:
    case = made(name)
    images = case.case.images(32, 2).numpy()
    model = linked(case)
    accuracy = measure(
        answers(quantised(name), case.slots, images), answers(model, case.slots, images)
    )
    assert accuracy.error <= 0.06, accuracy
    assert not accuracy.faults("int8"), accuracy
    assert accuracy.error > 1e-5, "nothing was quantised"


def test_the_usual_quantiser_leaves_branches_alone_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    case = made("plain")
    original = linked(case)
    inside = [n for g, n in walk(original) if frozen(n) and g is not original.graph]
    assert inside

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [feeds(case, seed) for seed in range(4)]

        def get_next(self) -> dict[str, Any] | None:
            return self.left.pop() if self.left else None

    source, result = tmp_path / "given.onnx", tmp_path / "result.onnx"
    source.write_bytes(store.to_bytes(original))
    with caplog.at_level(logging.WARNING):
        quantize_static(str(source), str(result), Reader(), quant_format=QuantFormat.QDQ)
    assert not [r for r in caplog.records if "If" in r.message or "branch" in r.message]
    theirs = ir.from_proto(onnx.load(result))
    outside = {"QuantizeLinear", "DequantizeLinear"} & {n.op_type for n in theirs.graph}
    assert outside, "it quantised nothing at all"
    pairs = {
        "theirs": [n for g, n in walk(theirs) if g.name != theirs.graph.name],
        "ours": [n for g, n in walk(quantised("plain")) if "/" in (g.name or "")],
    }
    counts = {who: sum(n.op_type == "QuantizeLinear" for n in ns) for who, ns in pairs.items()}
    assert counts == {"theirs": 0, "ours": 2 * len(inside)}


def test_an_activation_that_two_products_read_is_quantised_once() -> None:
    model = to_int8(linked(made("plain")), found("plain").amax)
    names = [node.name for _, node in walk(model)]
    assert len(names) == len(set(names))
    activations = [
        node.inputs[0].name
        for g, node in walk(model)
        if node.op_type == "QuantizeLinear" and node.inputs[0] and not node.inputs[0].const_value
    ]
    read = {
        (id(g), node.inputs[0].name)
        for g, node in walk(linked(made("plain")))
        if frozen(node) and node.inputs[0]
    }
    assert len(activations) == len(read) < operators(model)["Conv"]


SIDES = {
    "MatMul": ("v0 = MatMul(image, w)", (6, 4), 1),
    "MatMul from the left": ("v0 = MatMul(w, image)", (4, 5), 0),
    "Gemm": ("v0 = Gemm(image, w)", (6, 4), 1),
    "Gemm turned": ("v0 = Gemm <transB: int = 1> (image, w)", (4, 6), 0),
    "Gemm from the left": ("v0 = Gemm(w, image)", (4, 5), 0),
    "Gemm from the left, turned": ("v0 = Gemm <transA: int = 1> (w, image)", (5, 4), 1),
}


@pytest.mark.parametrize("name", SIDES)
def test_scales_lie_along_the_axis_of_the_output(name: str) -> None:
    line, shape, axis = SIDES[name]
    source = f"{HEAD} g (float[5,6] image) => (float[M,N] features) {{ {line} "
    # Rows and columns of very different size: along the other axis all precision would be lost.
    weight = draw(shape, 1) * np.moveaxis(np.logspace(-4, 4, 4)[:, None], 0, axis).astype(
        np.float32
    )
    original = text(source + "features = Identity(v0) }", {"w": weight})
    model = to_int8(original, {"image": 4.0})
    checked(model)
    (node,) = [n for n in model.graph if n.name == "w/int8"]
    assert node.attributes.get_int("axis", -1) == axis
    image = {"image": np.clip(draw((5, 6), 2), -4, 4)}
    got, want = run(model, image)["features"], run(original, image)["features"]
    side = 0 if "left" in name else 1
    size = np.abs(want).max(axis=1 - side, keepdims=True)
    assert (np.abs(got - want) <= 0.05 * size).all()


def test_two_activations_are_not_quantised() -> None:
    original = linked(made("tokens"))
    attention = [n for _, n in walk(original) if n.op_type == "MatMul" and not frozen(n)]
    assert any(not is_domain(node) for node in attention)
    after = {n.outputs[0].name: n for _, n in walk(quantised("tokens"))}
    for node in attention:
        twin = after[node.outputs[0].name]
        assert [v and v.name for v in twin.inputs] == [v and v.name for v in node.inputs]


@drawn(
    arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=2, max_dims=4, max_side=4),
        elements=st.floats(-1e6, 1e6, width=32),
    ),
    st.integers(0, 3),
)
def test_a_weight_is_off_by_half_a_step_of_its_channel_at_most(
    weight: np.ndarray[Any, Any], axis: int
) -> None:
    axis %= weight.ndim
    scales = channel_scales("w", weight, axis)
    assert (scales > 0).all()
    wide = scales.astype(np.float64).reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    small = np.clip(np.round(weight / wide), -128, 127)
    floor = np.finfo(np.float32).tiny * LEVELS
    assert (np.abs(small * wide - weight) <= wide / 2 * (1 + 1e-5)).all() or (
        np.abs(weight).max() <= floor
    )
    assert np.abs(small).max(initial=0) <= LEVELS


HOSTILE = {"missing": {}, "zero": 0.0, "negative": -1.0, "nan": np.nan, "infinite": np.inf}


@pytest.mark.parametrize("how", HOSTILE)
def test_hostile_ranges_are_refused_by_name(how: str) -> None:
    amax = dict(found("plain").amax)
    name = sorted(amax)[1]
    amax.pop(name)
    if how != "missing":
        amax[name] = HOSTILE[how]  # type: ignore[assignment]
    with pytest.raises(PrecisionError, match=rf"{name!r}.*above zero.*\n.*calibrate"):
        to_int8(linked(made("plain")), amax)


def test_hostile_weights_that_are_not_finite_are_refused_by_name() -> None:
    with pytest.raises(PrecisionError, match=r"'w'.*finite"):
        channel_scales("w", np.array([[1, np.nan]], np.float32), 0)


def test_an_opset_without_scales_per_channel_is_refused() -> None:
    source = """<ir_version: 7, opset_import: ["": 12]>
        g (float[1,2] image) => (float[1,2] logits) { v0 = MatMul(image, w)
        logits = Identity(v0) }"""
    with pytest.raises(PrecisionError, match=r"opset 13 or above.*got 12"):
        to_int8(text(source, {"w": draw((2, 2))}), {"image": 1.0})


def test_same_model_same_bytes_and_the_given_one_is_left_alone() -> None:
    model = linked(made("tokens"))
    before = store.to_bytes(model)
    first = store.to_bytes(to_int8(model, found("tokens").amax))
    assert first == store.to_bytes(quantised("tokens"))
    assert store.to_bytes(model) == before


def test_a_channel_of_zeros_stays_zero() -> None:
    source = f"{HEAD} g (float[2,3] image) => (float[2,2] features) {{ v0 = MatMul(image, w) "
    original = text(source + "features = Identity(v0) }", {"w": np.array([[0, 1]] * 3, np.float32)})
    image = {"image": draw((2, 3))}
    got = run(to_int8(original, {"image": 3.0}), image)["features"]
    assert (got[:, 0] == 0).all()
    # Three activations, each off by half a step.
    assert (np.abs(got[:, 1] - image["image"].sum(1)) <= 3 * 0.5 * 3 / LEVELS + 1e-6).all()


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", ["plain", "grouped", "tokens", "channels_last", "inverted"])
def test_nvidias_builder_takes_the_quantised_graph(name: str, flavour: Flavour) -> None:
    model = quantised(name, flavour)
    network = parse(model)
    assert network.count("QUANTIZE") == operators(model)["QuantizeLinear"]
    assert network.count("DEQUANTIZE") == operators(model)["DequantizeLinear"]
    assert network.plan() > 0


def test_segments_are_quantised_with_the_same_ranges() -> None:
    total = 0
    for part, segment in segments(made("plain")).items():
        model = to_int8(fix_batch(segment, 1), found("plain").amax)
        checked(model)
        total += sum(n.op_type == "QuantizeLinear" for _, n in walk(model))
        assert parse(model).plan() > 0, part
    assert total == operators(quantised("plain"))["QuantizeLinear"]


WEIGHTS = {
    "conv": ((8, 6, 3, 3), 0),
    "depthwise": ((12, 1, 5, 5), 0),
    "pointwise": ((16, 24, 1, 1), 0),
    "product": ((24, 16), 1),
    "product, turned": ((16, 24), 0),
}


@drawn(st.sampled_from(sorted(WEIGHTS)), st.integers(0, 2**16))
def test_rounded_weights_are_whole_steps_whose_errors_cancel(name: str, seed: int) -> None:
    """Law: less than a step from the weight, and half a step at most over an output channel."""
    shape, axis = WEIGHTS[name]
    weight = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    scales = channel_scales("w", weight, axis)
    steps = np.moveaxis(weight, axis, 0).reshape(shape[axis], -1) / scales[:, None]
    rounded = rounded_weight(weight, scales, axis)
    whole = np.moveaxis(rounded, axis, 0).reshape(shape[axis], -1) / scales[:, None]
    assert rounded.shape == shape
    assert rounded.dtype == np.float32
    assert np.abs(whole - np.rint(whole)).max() < 1e-3
    assert np.abs(whole).max() < 127.001
    assert np.abs(whole - steps).max() < 1.001
    assert np.abs((whole - steps).sum(axis=1)).max() < 0.501
    again = rounded_weight(rounded, scales, axis)
    assert np.allclose(again, rounded, rtol=1e-6, atol=0)


def test_a_depthwise_kernel_loses_its_shift() -> None:
    """Nine weights a third of a step above: nearest rounding shifts the output by three steps."""
    weight = np.full((1, 1, 3, 3), 1 / 3, np.float32)
    scales = np.ones(1, np.float32)
    assert np.rint(weight).sum() == 0
    assert rounded_weight(weight, scales, 0).sum() == 3


def test_negative_sums_of_an_adaptor_behind_a_relu_keep_their_range() -> None:
    """The block ends in a ReLU; its adapted output is negative, and so it is after Q/DQ."""
    case = made("plain")
    name = "out.block00"
    taps = case.session(Linkage("swap", "if"), taps=True)
    images = case.case.images(1, 2).numpy()
    value = taps.run({"image": images, **case.slots}, [name])[name]
    assert value.min() < 0, "the case shows nothing"
    small = next(
        n
        for _, n in walk(quantised("plain"))
        if n.op_type == "QuantizeLinear" and n.inputs[0] is not None and n.inputs[0].name == name
    )
    scale, zero = (small.inputs[i].const_value.numpy() for i in (1, 2))  # type: ignore[union-attr]
    assert zero.dtype == np.int8
    assert not zero.any()
    assert float(scale) * -128 < value.min() / 2

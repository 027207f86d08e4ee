"""Half precision: what is in which type, that branches agree, and that the answers stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.support.cases import CASES, Made, close, made
from tests.support.parsing import parse
from tests.support.small_models import checked, draw, linked, run, text
from toolchain.bundle.linkage import Flavour, Linkage
from toolchain.core.errors import PrecisionError
from toolchain.device.runtime.ort.session import Session
from toolchain.export.emit.accuracy import answers, measure
from toolchain.export.emit.fp16 import halved, to_fp16
from toolchain.export.emit.int8 import frozen
from toolchain.export.emit.owners import is_domain, walk
from toolchain.export.emit.rewrite import branches, fix_batch
from toolchain.export.graph import store
from toolchain.export.graph.link import link
from toolchain.export.graph.stage import stage

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
FLAVOURS: tuple[Flavour, ...] = ("swap", "static")
HEAD = '<ir_version: 10, opset_import: ["": 18]>'


def segments(case: Made) -> dict[str, ir.Model]:
    """The segments of a staged model by name."""
    staged = stage(case.loaded())
    parts = [m for s in staged.sites for m in (s.side, s.opened, s.closed) if m is not None]
    return {m.graph.name or "": m for m in (*parts, staged.tail)}


def interface(model: ir.Model) -> dict[str, ir.DataType | None]:
    """Inputs and outputs by name with their types."""
    return {v.name or "": v.dtype for v in (*model.graph.inputs, *model.graph.outputs)}


def site(node: ir.Node) -> str:
    """The site whose result a node of the join belongs to."""
    return (node.name or "").partition("out.")[2].partition("/")[0]


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", CASES)
def test_frozen_products_are_halved_and_the_domain_is_not(name: str, flavour: Flavour) -> None:
    original = linked(made(name), flavour)
    model = to_fp16(original)
    checked(model)
    assert set(interface(model).values()) == {FLOAT}
    products = [node for _, node in walk(model) if frozen(node)]
    assert len(products) == sum(frozen(node) is not None for _, node in walk(original)) > 0
    for node in products:
        assert {v.dtype for v in (*node.inputs, *node.outputs) if v is not None} == {HALF}
    for _, node in walk(model):
        if is_domain(node) and node.op_type in ("Conv", "MatMul", "Gemm", "Concat", "Add"):
            assert {v.dtype for v in (*node.inputs, *node.outputs) if v is not None} == {FLOAT}
    for graph in {id(g): g for g, _ in walk(model)}.values():
        for key, value in graph.initializers.items():
            assert value.const_value is not None
            assert value.const_value.dtype == value.dtype
            assert flavour == "static" or value.dtype != FLOAT or "/fp16" not in key


@pytest.mark.parametrize("name", CASES)
def test_both_branches_give_the_type_of_their_conditional(name: str) -> None:
    for flavour in FLAVOURS:
        for _, node in walk(to_fp16(linked(made(name), flavour))):
            ends = [graph.outputs[0] for _, graph in branches(node)]
            assert {end.dtype for end in ends} <= {HALF}
            assert len({str(end.shape) for end in ends}) <= 1
            assert not ends or node.outputs[0].dtype == HALF


@pytest.mark.parametrize("name", CASES)
def test_no_two_casts_in_a_row_and_none_made_twice(name: str) -> None:
    for model in [to_fp16(linked(made(name))), *map(to_fp16, segments(made(name)).values())]:
        casts = set()
        for graph, node in walk(model):
            if node.op_type == "Cast":
                source = node.inputs[0]
                assert source is not None
                assert source.dtype != node.outputs[0].dtype
                maker = source.producer()
                assert maker is None or maker.op_type != "Cast", node.name
                assert (id(graph), id(source)) not in casts, node.name
                casts.add((id(graph), id(source)))


def test_a_correction_is_cast_once_outside_on_its_coarse_grid() -> None:
    model = to_fp16(linked(made("plain")))
    casts = [n for g, n in walk(model) if n.op_type == "Cast" and g is not model.graph]
    assert not casts
    for _, node in walk(model):
        if node.op_type == "Resize":
            scales = node.inputs[2]
            assert node.inputs[0] is not None
            assert scales is not None
            assert node.inputs[0].name == f"adaptor.{site(node)}/fp16"
            assert scales.dtype == FLOAT


@pytest.mark.parametrize("name", CASES)
def test_no_branch_reads_a_correction_before_its_cast(name: str) -> None:
    model = to_fp16(linked(made(name)))
    for graph, node in walk(model):
        read = [v for v in node.inputs if v is not None and (v.name or "").startswith("adaptor.")]
        assert graph is model.graph or all(v.dtype == HALF for v in read), node.name


def test_branches_of_different_types_are_made_to_agree() -> None:
    source = f"""{HEAD} g (bool c, float[1,4] image) => (float[1,4] logits) {{
        v0 = MatMul(image, w)
        v1 = If (c) <
            then_branch = t () => (float[1,4] a) {{ a = Softmax(v0) }},
            else_branch = e () => (float[1,4] b) {{ b = Relu(v0) }}
        >
        logits = Gemm(v1, h)
    }}"""
    original = text(source, {"w": draw((4, 4)), "h": draw((4, 4), 2)})
    model = to_fp16(original)
    checked(model)
    (choice,) = [node for _, node in walk(model) if node.op_type == "If"]
    ends = [graph.outputs[0] for _, graph in branches(choice)]
    assert [(end.name, end.dtype) for end in ends] == [("a", HALF), ("b", HALF)]
    for flag in (True, False):
        feeds = {"c": np.array(flag), "image": draw((1, 4))}
        assert close(run(model, feeds)["logits"], run(original, feeds)["logits"], 5e-3)


def test_a_pool_reads_the_half_map_and_a_mean_does_not() -> None:
    pooled = {n.op_type: n for _, n in walk(to_fp16(linked(made("plain")))) if is_domain(n)}
    assert pooled["AveragePool"].outputs[0].dtype == HALF
    assert pooled["ReduceMean"].outputs[0].dtype == FLOAT


@pytest.mark.parametrize("name", CASES)
def test_answers_stay_within_what_fp16_may_change(name: str) -> None:
    case = made(name)
    model = linked(case)
    images = case.case.images(24, 5).numpy()
    accuracy = measure(
        answers(to_fp16(model), case.slots, images), answers(model, case.slots, images)
    )
    assert not accuracy.faults("fp16", 0.002), accuracy
    assert accuracy.error > 0, "nothing was rounded"


@pytest.mark.parametrize("name", ["plain", "tokens", "channels_last", "headless"])
def test_segments_exchange_what_they_agree_on(name: str) -> None:
    types: dict[str, ir.DataType | None] = {}
    for part, segment in segments(made(name)).items():
        model = to_fp16(segment)
        checked(model)
        for value, dtype in interface(model).items():
            assert types.setdefault(value, dtype) == dtype, (part, value)
    for value, dtype in types.items():
        wide = not value.startswith(("in.", "block.", "out."))
        assert dtype == (FLOAT if wide else HALF), value


@pytest.mark.parametrize("name", ["plain", "tokens"])
def test_segments_one_after_another_answer_as_the_whole_graph(name: str) -> None:
    case = made(name)
    parts = {k: to_fp16(m) for k, m in segments(case).items()}
    values: dict[str, Any] = {**case.slots, "image": case.case.images(1, 3).numpy()}
    whole = run(to_fp16(linked(case)), values)
    for stem in [k.removesuffix("/side") for k in parts if k.endswith("/side")]:
        values.update(_session(parts[f"{stem}/side"], values))
        opened = values.get(f"gate.{stem}", np.zeros((1, 1))).item() >= 0
        values.update(_session(parts[f"{stem}/{'opened' if opened else 'closed'}"], values))
    assert close(_session(parts["tail"], values)["logits"], whole["logits"], 2e-3)


def _session(model: ir.Model, values: Mapping[str, Any]) -> dict[str, Any]:
    session = Session(store.to_bytes(model))
    return session.run({name: values[name] for name in session.inputs})


NORM = f"""{HEAD} g (float[1,4,8] image) => (float[1,4,8] features) {{
    v0 = Mul(image, big)
    v1 = MatMul(v0, w)
    mean = ReduceMean <keepdims: int = 1> (v1, axes)
    centred = Sub(v1, mean)
    squares = Mul(centred, centred)
    variance = ReduceMean <keepdims: int = 1> (squares, axes)
    padded = Add(variance, epsilon)
    root = Sqrt(padded)
    normed = Div(centred, root)
    scaled = Mul(normed, gain)
    features = Add(scaled, v1)
}}"""


def norm() -> ir.Model:
    """A norm in plain arithmetic over values whose squares fp16 does not hold."""
    return text(
        NORM,
        {
            "big": np.array(300, np.float32),
            "w": draw((8, 8), 2),
            "axes": np.array([2], np.int64),
            "epsilon": np.array(1e-12, np.float32),
            "gain": draw((8,), 3),
        },
    )


def test_a_norm_in_plain_arithmetic_stays_wide() -> None:
    original = norm()
    model = to_fp16(original)
    checked(model)
    wide = {node.outputs[0].name for _, node in walk(model) if node.outputs[0].dtype == FLOAT}
    assert {"mean", "centred", "squares", "variance", "padded", "root", "normed"} <= wide
    feeds = {"image": draw((1, 4, 8))}
    got, want = run(model, feeds)["features"], run(original, feeds)["features"]
    assert np.isfinite(got).all()
    assert close(got, want, 5e-3)


def test_a_constant_of_both_types_is_kept_in_both() -> None:
    source = f"""{HEAD} g (float[1,4] image) => (float[1,4] logits) {{
        v0 = MatMul(image, w)
        v1 = Mul(v0, c)
        v2 = Softmax(v1)
        v3 = Mul(v2, c)
        logits = Gemm(v3, h)
    }}"""
    tensors = {"w": draw((4, 4)), "c": draw((1, 4), 1), "h": draw((4, 4), 2)}
    model = to_fp16(text(source, tensors))
    checked(model)
    constants = {name: v.dtype for name, v in model.graph.initializers.items()}
    assert constants == {"w": HALF, "c": FLOAT, "c/fp16": HALF, "h": FLOAT}


def product(weight: np.ndarray[Any, Any]) -> ir.Model:
    """One frozen matrix product."""
    source = f"{HEAD} g (float[1,2] image) => (float[1,2] logits) {{ v0 = MatMul(image, w) "
    return text(source + "logits = Identity(v0) }", {"w": weight})


def test_hostile_weights_beyond_half_are_refused_by_name() -> None:
    with pytest.raises(PrecisionError, match=r"'w'.*65504.*70000"):
        to_fp16(product(np.array([[1, 70000], [0, 1]], np.float32)))
    with pytest.raises(PrecisionError, match=r"'w'.*nan"):
        to_fp16(product(np.full((2, 2), np.nan, np.float32)))


def test_hostile_weights_that_would_all_be_zero_are_refused_by_name() -> None:
    with pytest.raises(PrecisionError, match=r"'w'.*from zero.*1e-09"):
        to_fp16(product(np.full((2, 2), 1e-9, np.float32)))
    to_fp16(product(np.zeros((2, 2), np.float32)))


def test_a_loop_and_a_foreign_operator_are_refused_by_name() -> None:
    loop = f"""{HEAD} g (int64 n, bool c, float[2] image) => (float[2] logits) {{
        logits = Loop(n, c, image) <body = b (int64 i, bool d, float[2] x) =>
            (bool e, float[2] y) {{ e = Identity(d) y = Add(x, x) }}>
    }}"""
    with pytest.raises(PrecisionError, match="only operator with graphs inside, got Loop"):
        to_fp16(text(loop))
    foreign = """<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]>
        g (float[2] image) => (float[2] logits) {
            v0 = com.microsoft.QuickGelu(image)
            logits = Identity(v0) }"""
    with pytest.raises(PrecisionError, match=r"v0.*com\.microsoft\.QuickGelu"):
        to_fp16(text(foreign))


def test_same_model_same_bytes_and_the_given_one_is_left_alone() -> None:
    model = linked(made("tokens"))
    before = store.to_bytes(model)
    assert store.to_bytes(to_fp16(model)) == store.to_bytes(to_fp16(linked(made("tokens"))))
    assert store.to_bytes(model) == before


@drawn(arrays.arrays(np.float32, (5,), elements=st.floats(width=32, allow_nan=False)))
def test_halving_rounds_to_nearest_or_refuses(array: np.ndarray[Any, Any]) -> None:
    largest = np.abs(array).max()
    if largest >= 65520 or 0 < largest <= 2**-25:
        with pytest.raises(PrecisionError):
            halved("t", array)
        return
    half = halved("t", array)
    assert half.dtype == np.float16
    step = np.maximum(np.abs(array) * 2.0**-10, 2.0**-24)
    assert (np.abs(half.astype(np.float64) - array) <= step / 2).all()


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", ["plain", "plain-da2", "tokens", "channels_last", "inverted"])
def test_nvidias_builder_takes_the_typed_graph(name: str, flavour: Flavour) -> None:
    network = parse(to_fp16(linked(made(name), flavour)))
    assert network.plan() > 0


@pytest.mark.parametrize("name", ["plain", "tokens"])
def test_nvidias_builder_takes_every_typed_segment(name: str) -> None:
    for part, model in segments(made(name)).items():
        assert parse(to_fp16(fix_batch(model, 1))).plan() > 0, part


def test_the_graph_that_was_linked_with_references_is_refused() -> None:
    with pytest.raises(PrecisionError, match="got a reference"):
        to_fp16(link(made("plain").halves, Linkage("swap", "if")))

"""Lowering the opset: the same answers, a model that the checker accepts, refusals by name."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.support.cases import made
from tests.support.small_models import (
    TOYS,
    Array,
    checked,
    draw,
    feeds,
    linked,
    operators,
    run,
    text,
)
from toolchain.core.errors import ModelRefusedError
from toolchain.export.emit.dialect import IR_VERSIONS, SAME, lower
from toolchain.export.emit.lowering import RULES
from toolchain.export.emit.rewrite import fix_batch
from toolchain.export.graph.stage import stage

# Captured once: these tests stay beside the others that capture.
pytestmark = pytest.mark.usefixtures("plain")

# LayerNormalization is one kernel of onnxruntime, and six below opset 17.
TAKEN_APART = ("tokens-da2", "channels_last")


def close(got: dict[str, Array], want: dict[str, Array], relative: float) -> None:
    for name, expected in want.items():
        span = max(float(np.ptp(expected)), 1e-3) if expected.size > 1 else 1.0
        np.testing.assert_allclose(got[name], expected, rtol=0, atol=relative * span, err_msg=name)


@pytest.mark.parametrize("opset", [17, 16, 13])
@pytest.mark.parametrize("name", TOYS)
def test_a_linked_graph_answers_the_same(name: str, opset: int) -> None:
    toy = made(name)
    model = linked(toy)
    lowered = lower(model, opset)
    proto = checked(lowered)
    assert (proto.opset_import[0].version, proto.ir_version) == (opset, IR_VERSIONS[opset])
    for seed in range(2):
        loose = name in TAKEN_APART and opset < 17
        got, want = run(lowered, feeds(toy, seed)), run(model, feeds(toy, seed))
        close(got, want, 1e-5 if loose else 0.0)


@pytest.mark.parametrize("name", ["plain", "tokens-da2", "one_pixel"])
def test_segments_are_lowered(name: str) -> None:
    staged = stage(made(name).loaded())
    every = [s for one in staged.sites for s in (one.side, one.opened, one.closed) if s]
    for segment in [*every, staged.tail]:
        fixed = fix_batch(segment, 1)
        lowered = lower(fixed, 13)
        checked(lowered)
        inputs = {
            v.name or "": draw([d if isinstance(d, int) else 3 for d in v.shape or []], seed) ** 2
            for seed, v in enumerate(fixed.graph.inputs)
        }
        close(run(lowered, inputs), run(fixed, inputs), 1e-5)


X = "float[2,3,4] x"
FORMS = {
    "ReduceMean of two axes": (X, "y = ReduceMean <keepdims: int = 0> (x, axes)", 18),
    "ReduceMax of all": (X, "y = ReduceMax <keepdims: int = 1> (x)", 18),
    "ReduceMean of nothing": (X, "y = ReduceMean <noop_with_empty_axes: int = 1> (x)", 18),
    "Split in three": (
        "float[2,6,4] x",
        "y, b, c = Split <axis: int = 1, num_outputs: int = 3> (x)",
        18,
    ),
    "Split unevenly": (
        "float[2,5,4] x",
        "y, b = Split <axis: int = 1, num_outputs: int = 2> (x)",
        18,
    ),
    "Split from the end": (
        "float[2,5,4] x",
        "y, b = Split <axis: int = -2, num_outputs: int = 2> (x)",
        18,
    ),
    "Pad some axes": (X, "y = Pad (x, amounts, , axes)", 18),
    "Shape with bounds": (X, "s = Shape <start: int = 1> (x)  y = Cast <to: int = 1> (s)", 18),
    "Shape to an end": (
        X,
        "s = Shape <start: int = -3, end: int = -1> (x) y = Cast <to: int = 1> (s)",
        18,
    ),
    "LayerNormalization": (X, "y = LayerNormalization <axis: int = -1> (x, four, four)", 17),
    "LayerNormalization of halves": (
        X,
        "h = Cast <to: int = 10> (x) n = LayerNormalization (h, half) y = Cast <to: int = 1> (n)",
        17,
    ),
    "LayerNormalization of two axes": (X, "y = LayerNormalization <axis: int = 1> (x, twelve)", 17),
    "GroupNormalization per group": (
        "float[2,6,4,2] x",
        "y = GroupNormalization <num_groups: int = 2> (x, two, two)",
        18,
    ),
    "GroupNormalization per channel": (
        "float[2,4,3,2] x",
        "y = GroupNormalization <num_groups: int = 2> (x, four, four)",
        21,
    ),
    "HardSwish": (X, "y = HardSwish (x)", 18),
    "Mish": (X, "y = Mish (x)", 18),
    "Gelu": (X, "y = Gelu (x)", 20),
    "Gelu by tanh": (X, 'y = Gelu <approximate: string = "tanh"> (x)', 20),
    "Reshape literally": (X, "y = Reshape <allowzero: int = 1> (x, flat)", 18),
    "BatchNormalization": (
        "float[2,4,3] x",
        "y = BatchNormalization (x, four, four, four, four)",
        18,
    ),
    "AveragePool": (
        "float[1,2,6,6] x",
        "y = AveragePool <kernel_shape: ints = [2, 2], dilations: ints = [1, 1]> (x)",
        19,
    ),
    "Resize by axes": (
        "float[1,2,3,4] x",
        'y = Resize <mode: string = "nearest", axes: ints = [0, 1, 2, 3]> (x, , doubled)',
        18,
    ),
    "ScatterND": ("float[3,2] x", "y = ScatterND (x, rows, ones)", 18),
}
CONSTANTS = {
    "axes": np.array([0, -1]),
    "amounts": np.array([1, 0, 2, 1]),
    "two": np.abs(draw((2,), 5)),
    "four": np.abs(draw((4,), 6)),
    "half": draw((4,), 8).astype(np.float16),
    "twelve": draw((3, 4), 7),
    "flat": np.array([6, -1]),
    "doubled": np.array([1, 1, 2, 2], np.float32),
    "rows": np.array([[2], [0]]),
    "ones": np.ones((2, 2), np.float32),
}


def form(name: str, *, inside: bool) -> ir.Model:
    """A model of one form, or one whose form lies in both branches of an If."""
    signature, body, opset = FORMS[name]
    source = f"""<ir_version: 10, opset_import: ["": {opset}]>
        g ({signature}, bool flag) => (float[] y) {{ {body} }}"""
    words = set(re.findall(r"[a-z]+", body.rpartition("(")[2] + body))
    model = text(source, {key: array for key, array in CONSTANTS.items() if key in words})
    return ir.from_proto(_wrapped(ir.to_proto(model))) if inside else model


def _wrapped(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Move all nodes into both branches of one If, under names of their own."""
    branches = {}
    for branch in ("then_branch", "else_branch"):
        inner = [onnx.NodeProto.FromString(node.SerializeToString()) for node in proto.graph.node]
        made = {out for node in inner for out in node.output}
        for node in inner:
            node.input[:] = [f"{branch}/{n}" if n in made else n for n in node.input]
            node.output[:] = [f"{branch}/{n}" for n in node.output]
        result = onnx.helper.make_tensor_value_info(f"{branch}/y", onnx.TensorProto.FLOAT, None)
        branches[branch] = onnx.helper.make_graph(inner, branch, [], [result])
    del proto.graph.node[:]
    proto.graph.node.append(onnx.helper.make_node("If", ["flag"], ["y"], **branches))
    return proto


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_each_form_has_an_older_one(name: str, inside: bool) -> None:
    model = form(name, inside=inside)
    shape = [int(side) for side in FORMS[name][0].split("[")[1].split("]")[0].split(",")]
    lowered = lower(model, 13)
    checked(lowered)
    for flag in (True, False):
        inputs = {"x": draw(shape), "flag": np.array(flag)}
        # The CPU rounds to fp16 between other nodes than before.
        close(run(lowered, inputs), run(model, inputs), 5e-4 if "halves" in name else 2e-6)


def test_every_rule_is_tried() -> None:
    tried = {part for _, body, _ in FORMS.values() for part in RULES if f"{part} " in body}
    assert set(RULES) - tried <= {"ScatterElements"} | {r for r in RULES if r.startswith("Reduce")}


def test_operators_said_to_be_the_same_gained_types_alone() -> None:
    """The claim of the table, held to the schemas: no attribute and no input came or went."""
    for name in SAME:
        new, old = (onnx.defs.get_schema(name, max_inclusive_version=v) for v in (18, 13))
        assert set(new.attributes) == set(old.attributes), name
        assert (new.min_input, new.max_input) == (old.min_input, old.max_input), name


REFUSED = {
    "an operator that came later": "y = Trilu (x)",
    "a resize with antialias": 'y = Resize <mode: string = "linear", antialias: int = 1> (x, , s)',
    "axes computed at run time": "a = Shape (x)  y = ReduceMean (x, a)",
    "a root of squares over no axes": "y = ReduceL2 <noop_with_empty_axes: int = 1> (x)",
    "a padding that wraps": 'y = Pad <mode: string = "wrap"> (x, p)',
    "a scatter that adds": 'y = ScatterND <reduction: string = "add"> (x, i, u)',
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_older_form_is_refused_by_node(name: str) -> None:
    body = REFUSED[name].replace("y =", "[the_node] y =")
    constants = {
        "s": np.array([2, 2], np.float32),
        "p": np.array([1, 0, 0, 1]),
        "i": np.array([[1]]),
        "u": np.ones((1, 4), np.float32),
    }
    opset = 19 if "wrap" in body else 18
    source = f"""<ir_version: 10, opset_import: ["": {opset}]>
        g (float[4,4] x) => (float[] y) {{ {body} }}"""
    with pytest.raises(ModelRefusedError, match="the_node") as caught:
        lower(text(source, {k: v for k, v in constants.items() if f"{k}" in body}), 13)
    assert "opset 13" in str(caught.value)
    assert caught.value.fix


def test_all_faults_are_told_at_once_with_their_module() -> None:
    source = """<ir_version: 10, opset_import: ["": 18]>
        g (float[4,4] x) => (float[4,4] z) { y = Trilu (x) z = Trilu (y) }"""
    with pytest.raises(ModelRefusedError, match="2 nodes"):
        lower(text(source), 13)


def test_the_given_model_is_left_alone() -> None:
    model = linked(made("tokens"))
    before = operators(model)
    lower(model, 13)
    assert operators(model) == before
    assert model.graph.opset_imports[""] == 18


def test_names_of_values_stay() -> None:
    """Other passes and the runtime know blocks, gates and results by name."""
    model = linked(made("tokens"))
    names = {v.name for node in model.graph for v in node.outputs}
    assert names <= {v.name for node in lower(model, 13).graph for v in node.outputs}


@pytest.mark.parametrize("opset", [12, 21, 0, -1])
def test_an_opset_outside_the_table_is_refused(opset: int) -> None:
    with pytest.raises(ModelRefusedError, match="opset"):
        lower(linked(made("plain")), opset)

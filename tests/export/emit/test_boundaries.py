"""Names by which every parser makes the right boundaries: its published rules, replayed."""

from __future__ import annotations

import random

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.cases import made
from tests.support.parsing import parse
from tests.support.replay import RULES, bodies, network_bodies, results_8_5, rule_8_2, rule_8_6
from tests.support.small_models import TOYS, checked, feeds, linked, operators, run, text
from toolchain.core.errors import ModelRefusedError
from toolchain.export.emit.boundaries import entering, expected_boundaries, name_boundaries
from toolchain.export.emit.dialect import lower
from toolchain.export.emit.matmul import through_matmul
from toolchain.export.emit.rewrite import branches, conditionals, nodes

# Captured once: these tests stay beside the others that capture.
pytestmark = pytest.mark.usefixtures("plain")

GATED = [name for name in TOYS if name != "tokens-da2"] + ["tokens"]
SEEDS = [random.Random(seed) for seed in range(4)]


@pytest.mark.parametrize("name", GATED)
def test_the_answers_stay_bit_for_bit(name: str) -> None:
    toy = made(name)
    model = linked(toy)
    named = name_boundaries(model)
    checked(named)
    for seed in range(2):
        got, want = run(named, feeds(toy, seed)), run(model, feeds(toy, seed))
        assert all(np.array_equal(got[key], want[key]) for key in want)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", GATED)
def test_named_branches_get_all_and_only_the_right_boundaries(name: str, rule: str) -> None:
    for body in bodies(name_boundaries(linked(made(name)))):
        right = body.readers()
        assert right
        assert all(RULES[rule](body, shuffle) == right for shuffle in SEEDS)
        assert results_8_5(body, SEEDS[0]) == [body.result]


def test_without_names_the_rule_of_8_6_makes_none_on_linked_graphs() -> None:
    """Measured on every toy: a reader's name never begins with the name of what it reads."""
    for name in GATED:
        for body in bodies(linked(made(name))):
            assert body.readers()
            assert not rule_8_6(body, SEEDS[0]), name


def test_without_names_8_5_takes_the_upsampled_correction_for_the_result() -> None:
    parts = bodies(linked(made("plain")))
    assert all(results_8_5(body, SEEDS[0])[0] != body.result for body in parts)


def test_no_name_helps_8_2_and_8_4() -> None:
    for body in bodies(name_boundaries(linked(made("plain")))):
        assert rule_8_2(body, SEEDS[0]) == set() != body.readers()


@pytest.mark.parametrize("name", ["plain", "tokens", "inverted", "one_pixel"])
@pytest.mark.parametrize("opset", [13, 17, 18])
def test_the_real_parser_builds_it_with_the_expected_boundaries(name: str, opset: int) -> None:
    named = name_boundaries(lower(through_matmul(linked(made(name))), opset))
    parsed = parse(named)
    assert parsed.count("CONDITIONAL_INPUT") == expected_boundaries(named) > 0
    assert not [line for line in parsed.said if "Empty initializer" in line]
    assert parsed.plan() > 0


@pytest.mark.parametrize("name", ["plain", "tokens", "channels_last", "inverted"])
def test_on_real_networks_the_old_rules_find_what_the_new_parser_made(name: str) -> None:
    """Layers, helpers included, as NVIDIA's parser lays them; its boundaries taken out."""
    named = parse(name_boundaries(linked(made(name))))
    for body in network_bodies(named.module, named.network):
        right = body.readers()
        assert right
        for rule in RULES.values():
            assert all(rule(body, shuffle) == right for shuffle in SEEDS)
        assert results_8_5(body, SEEDS[0]) == [body.result]


def test_on_real_networks_without_names_the_rule_of_8_6_makes_none() -> None:
    plain = parse(linked(made("plain")))
    parts = network_bodies(plain.module, plain.network)
    assert parts
    assert all(body.readers() and not rule_8_6(body, SEEDS[0]) for body in parts)


def test_the_number_is_one_per_conditional_and_outer_tensor() -> None:
    """Both branches share a layer: block input and correction of each gate."""
    model = linked(made("plain"))
    gates = len(conditionals(model))
    assert expected_boundaries(model) == 2 * gates
    assert expected_boundaries(name_boundaries(model)) == 2 * gates
    assert parse(model).count("CONDITIONAL_INPUT") == 2 * gates


def test_every_outer_tensor_enters_once_per_branch_and_through_identity_alone() -> None:
    for conditional in conditionals(name_boundaries(linked(made("tokens")))):
        for value in entering(conditional):
            readers = [use.node for use in value.uses() if use.node.graph is not conditional.graph]
            assert [node.op_type for node in readers] == ["Identity"] * len(readers)
            assert len({id(node.graph) for node in readers}) == len(readers)
            assert all((node.name or "").startswith(value.name or "?") for node in readers)


def branchy(outer: list[str], inner: list[str]) -> ir.Model:
    """A conditional that adds ``outer`` up through nodes called ``inner``, in each branch."""

    def body(side: str) -> str:
        last, steps = "o0", []
        for step in range(len(inner)):
            steps.append(f"{side}{step} = Add ({last}, o{step % len(outer)})")
            last = f"{side}{step}"
        return f"(float[2] {last}) {{ {' '.join(steps)} }}"

    sources = " ".join(f"o{number} = Neg (x)" for number in range(len(outer)))
    then, otherwise = body("t"), body("e")
    model = text(f"""<ir_version: 10, opset_import: ["": 18]>
        g (float[2] x, bool flag) => (float[2] y) {{ {sources}
        y = If (flag) <then_branch = t () => {then}, else_branch = e () => {otherwise}> }}""")
    for node, name in zip(model.graph, outer, strict=False):
        node.outputs[0].name = name
    for _, branch in branches(conditionals(model)[0]):
        for node, name in zip(branch, inner, strict=True):
            node.name = name
    return model


INNER = st.sampled_from(["v", "v1", "v12/up", "v1/t", "_", "_/t/0/v", "in.x11", "Zz", ""])
HOSTILE = st.sampled_from(["v", "v1", "v12", "v123", "a.b", "_", "__", "in.x", "in.x1", "Z"])


@given(
    st.lists(HOSTILE, min_size=1, max_size=4, unique=True),
    st.lists(INNER, min_size=1, max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_names_that_begin_one_another_do_no_harm(outer: list[str], inner: list[str]) -> None:
    named = name_boundaries(branchy(outer, inner))
    for body in bodies(named):
        assert {name for name, _ in body.readers()} <= {layer.name for layer in body.layers}
        for rule in RULES.values():
            assert all(rule(body, shuffle) == body.readers() for shuffle in SEEDS)
        assert results_8_5(body, SEEDS[0]) == [body.result]
        assert len({layer.name for layer in body.layers}) == len(body.layers)
    inputs = {"x": np.array([1, -2], np.float32), "flag": np.array(True)}
    assert np.array_equal(
        run(named, inputs)["y"], run(branchy(outer, [""] * len(inner)), inputs)["y"]
    )


def test_without_naming_such_names_give_wrong_boundaries() -> None:
    """The replay can fail: an inner tensor would be bounded, or a reader be left out."""
    wrong = {
        version: any(
            rule(body, shuffle) != body.readers()
            for body in bodies(branchy(["v1"], ["v", "v12", "v1x"]))
            for shuffle in SEEDS
        )
        for version, rule in RULES.items()
    }
    assert wrong == {"8.5": True, "8.6 to 10.5": True}


SHARED = """<ir_version: 10, opset_import: ["": 18]>
    g (float[2] x, bool flag) => (float[2] y, float[2] z) {
    w = Add (x, c)
    y = If (flag) <then_branch = t () => (float[2] a) { a = Mul (w, c) },
                   else_branch = e () => (float[2] b) { b = Sub (w, c) }>
    z = If (flag) <then_branch = t2 () => (float[2] a2) { a2 = Mul (y, c) },
                   else_branch = e2 () => (float[2] b2) { b2 = Identity (y) }> }"""


def test_a_shared_constant_is_copied_into_each_branch_and_is_no_boundary() -> None:
    model = text(SHARED, {"c": np.array([3, 4], np.float32)})
    named = name_boundaries(model)
    assert expected_boundaries(named) == 2
    own = [
        name
        for conditional in conditionals(named)
        for _, branch in branches(conditional)
        for name in branch.initializers
    ]
    assert sorted(own) == ["e/c", "t/c", "t2/c"]
    inputs = {"x": np.array([1, 2], np.float32), "flag": np.array(False)}
    assert np.array_equal(run(named, inputs)["z"], run(model, inputs)["z"])
    assert parse(named).count("CONDITIONAL_INPUT") == 2


def test_a_branch_that_passes_an_outer_tensor_on_enters_through_identity() -> None:
    model = text(
        """<ir_version: 10, opset_import: ["": 18]>
        g (float[2] x, bool flag) => (float[2] y) {
        y = If (flag) <then_branch = t () => (float[2] a) { a = Neg (x) },
                       else_branch = e () => (float[2] b) { b = Identity (x) }> }"""
    )
    named = name_boundaries(model)
    assert operators(named)["Identity"] == 3
    for flag in (True, False):
        inputs = {"x": np.array([1, 2], np.float32), "flag": np.array(flag)}
        assert np.array_equal(run(named, inputs)["y"], run(model, inputs)["y"])


def test_the_gate_is_squeezed_and_not_reshaped_to_an_empty_shape() -> None:
    model = linked(made("plain"))
    gates = len(conditionals(model))
    assert operators(name_boundaries(model)).get("Squeeze") == gates
    warned = [line for line in parse(model).said if "Empty initializer" in line]
    assert warned


def test_a_conditional_inside_a_branch_is_refused_by_name() -> None:
    inner = (
        "If (flag) <then_branch = i () => (float[2] q) { q = Neg (x) }, "
        "else_branch = j () => (float[2] r) { r = Abs (x) }>"
    )
    model = text(f"""<ir_version: 10, opset_import: ["": 18]>
        g (float[2] x, bool flag) => (float[2] y) {{
        y = If (flag) <then_branch = t () => (float[2] a) {{ [nested] a = {inner} }},
                       else_branch = e () => (float[2] b) {{ b = Neg (x) }}> }}""")
    with pytest.raises(ModelRefusedError, match="nested"):
        name_boundaries(model)


def test_the_given_model_is_left_alone() -> None:
    model = linked(made("plain"))
    before = [node.name for node in nodes(model)]
    name_boundaries(model)
    assert [node.name for node in nodes(model)] == before


def test_a_graph_without_gates_has_no_boundaries() -> None:
    named = name_boundaries(linked(made("plain-head")))
    assert expected_boundaries(named) == 0

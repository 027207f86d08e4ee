"""Cutting: disjoint, complete, and exactly the captured graph when put together again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from tests.support import cases
from tests.support.cases import Made, run_exact
from toolchain.core.errors import SplitError
from toolchain.export.graph import store
from toolchain.export.graph.builder import input_names
from toolchain.export.graph.capture import Captured
from toolchain.export.graph.cut import cut_model
from toolchain.export.graph.fold import fold_batchnorm
from toolchain.export.graph.halves import recompose
from toolchain.export.graph.names import BACKBONE, DIALECT


def folded(made: Made) -> ir.Model:
    """The captured graph with its BatchNorms folded, from its bytes."""
    model = store.from_bytes(made.raw, what="captured")
    fold_batchnorm(model)
    return model


def test_the_halves_recompose_bit_for_bit(made: Made) -> None:
    """Law: recompose(cut_model(g)) answers as g does, bit for bit, at every cut point."""
    images = made.case.images(3, seed=9)
    want = run_exact(folded(made), images)
    got = run_exact(recompose(made.loaded()), images)
    shared = set(want) & set(got)
    assert {"logits", *made.halves.gates} <= shared
    assert {c.result for c in made.halves.adapted} <= shared
    for name in shared:
        assert np.array_equal(got[name], want[name]), name


def test_the_halves_are_disjoint_and_complete(made: Made) -> None:
    """Law: every captured node and every slot lies in exactly one half."""
    source = folded(made)
    plain = [c for c in made.halves.cuts if c not in made.halves.adapted]
    backbone, domain = made.halves.backbone.graph, made.halves.domain.graph
    assert len(list(backbone)) + len(list(domain)) == len(list(source.graph)) + len(plain)
    ours = {n for n in backbone.initializers if "." in n}
    theirs = {n for n in domain.initializers if "." in n}
    assert not ours & theirs
    assert all(name.startswith(BACKBONE) for name in ours)
    assert theirs == set(made.halves.slots)
    assert ours | theirs == {n for n in source.graph.initializers if "." in n}


def test_slots_are_those_of_the_domain_whatever_was_folded(made: Made) -> None:
    """Law: names, shapes, dtypes and bytes of the slots are the state dict's."""
    from toolchain.training.adapt.attached import arrays, domain_state

    want = arrays(domain_state(made.model))
    assert tuple(sorted(want)) == made.halves.slots
    got = made.slots
    for name, array in want.items():
        assert got[name].dtype == array.dtype
        assert got[name].shape == array.shape
        assert got[name].tobytes() == array.tobytes(), name
    initializers = made.loaded().domain.graph.initializers
    for name, array in want.items():
        value = initializers[name].const_value
        assert value is not None
        assert np.array_equal(value.numpy(), array), name


def test_equal_slots_are_never_merged() -> None:
    """Three adaptors that are all zero stay three: each slot exists once under its own name."""
    made = cases.made("plain-zero")
    zeros = [s for s in made.halves.slots if s.endswith("adaptor.expand.weight")]
    assert len(zeros) == 3
    read = [n for node in made.halves.domain.graph for n in input_names(node)]
    assert all(read.count(name) == 1 for name in zeros)
    assert not any(made.slots[name].any() for name in zeros)


def test_the_backbone_is_one_whatever_the_domain_is() -> None:
    """Law: one backbone, many domains: its bytes depend on no method, option or class count."""
    plain = [cases.made(name).halves for name in cases.CASES if name.startswith("plain")]
    assert len(plain) == 4
    assert len({half.backbone_graph for half in plain}) == 1
    assert len({half.weights_data for half in plain}) == 1
    for first, second in (("odd", "odd-gateable"), ("tokens", "tokens-da2")):
        assert cases.made(first).halves.backbone_graph == cases.made(second).halves.backbone_graph


def test_opset_and_ir_version_are_the_targets(made: Made) -> None:
    dialect = DIALECT
    for half in (made.halves.backbone, made.halves.domain):
        assert dict(half.graph.opset_imports) == {"": dialect.opset}
        assert half.ir_version == dialect.ir_version


def test_a_head_alone_reads_the_features_only() -> None:
    made = cases.made("plain-head")
    assert made.halves.adapted == ()
    assert made.halves.gates == ()
    assert made.halves.slots == ("head.bias", "head.weight")


def test_a_domain_that_reads_backbone_arithmetic_has_no_single_owner(plain: Made) -> None:
    """Sabotage: a domain node reads a backbone value between the cut points."""
    captured = _captured(plain)
    graph = captured.model.graph
    gate = next(n for n in graph if n.op_type == "MatMul")
    inner = next(
        n.outputs[0] for n in graph if n.op_type == "Relu" and not n.outputs[0].is_graph_output()
    )
    extra = ir.Node("", "ReduceMean", [inner], [ir.AttrInt64("keepdims", 0)])
    extra.outputs[0].name = "stolen"
    graph.insert_before(gate, extra)
    total = ir.Node("", "Add", [gate.inputs[0], extra.outputs[0]], outputs=[ir.Value(name="both")])
    graph.insert_before(gate, total)
    gate.replace_input_with(0, total.outputs[0])
    with pytest.raises(SplitError, match="both halves need node"):
        cut_model(captured.model, captured.cuts, captured.slots, captured.opset)


def test_a_dead_node_has_no_owner(plain: Made) -> None:
    captured = _captured(plain)
    graph = captured.model.graph
    dead = ir.Node("", "Identity", [graph.inputs[0]], name="dead_node")
    graph.append(dead)
    with pytest.raises(SplitError, match="no half needs node 'dead_node'"):
        cut_model(captured.model, captured.cuts, captured.slots, captured.opset)


def test_a_slot_that_nothing_uses_is_named(plain: Made) -> None:
    captured = _captured(plain)
    with pytest.raises(SplitError, match=r"block00\.adaptor\.lost"):
        slots = (*captured.slots, "block00.adaptor.lost")
        cut_model(captured.model, captured.cuts, slots, captured.opset)


def _captured(made: Made) -> Captured:
    """A captured graph that may be spoiled."""
    return replace(made.captured, model=folded(made))

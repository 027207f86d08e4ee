"""Handing out nodes: each once, to the part that owns it."""

from __future__ import annotations

from tests.support import cases
from tests.support.cases import Made
from toolchain.export.graph.builder import value_name
from toolchain.export.graph.regions import Parts


def test_every_node_is_handed_out_once(made: Made) -> None:
    """Law: glue, sides, blocks and head are all nodes of both halves but the dense joins."""
    parts = Parts(made.split)
    given = []
    for cut in made.split.cuts:
        given += parts.glue(cut.input)
        if cut.correction in parts.sides:
            given += parts.side(cut)
            for nodes in parts.block(cut):
                given += nodes
        else:
            given += parts.passage(cut)
    given += parts.glue(made.split.features) + parts.head()
    assert len({id(node) for node in given}) == len(given)
    assert {id(node) for node in made.split.backbone.graph} <= {id(node) for node in given}
    results = {cut.result for cut in made.split.adapted}
    assert not results & {value_name(v) for node in given for v in node.outputs}


def test_a_block_owns_what_only_it_needs() -> None:
    made = cases.made("plain")
    parts = Parts(made.split)
    cut = made.split.cuts[0]
    parts.glue(cut.input)
    shared, own = parts.block(cut)
    assert shared == []
    assert value_name(own[-1].outputs[0]) == cut.output
    assert [n.op_type for n in own].count("Conv") == 2


def test_what_two_blocks_read_is_shared() -> None:
    """A value that a later block reads too may not hide inside a branch."""
    halves = cases.two_inputs().split
    parts = Parts(halves)
    seen = []
    for cut in halves.cuts:
        parts.glue(cut.input)
        shared, own = parts.block(cut)
        seen.append((len(shared), len(own)))
    assert seen[1][0] > 0, "the steering value is computed outside the branch"
    assert all(own for _, own in seen)


def test_constants_of_both_halves_are_found() -> None:
    made = cases.made("plain")
    parts = Parts(made.split)
    assert parts.constant("head.weight") is not None
    assert parts.constant("backbone.blocks.0.conv1.weight+bn") is not None
    assert parts.constant("nothing") is None

"""Handing out nodes: each once, to the part that owns it."""

from __future__ import annotations

from tests.support import cases
from tests.support.cases import Made
from toolchain.export.graph.builder import value_name
from toolchain.export.graph.regions import Regions


def test_every_node_is_handed_out_once(made: Made) -> None:
    """Law: glue, sides, blocks and head are all nodes of both halves but the dense joins."""
    regions = Regions(made.halves)
    members = []
    for cut in made.halves.cuts:
        members += regions.glue(cut.input)
        if regions.is_adapted(cut):
            members += regions.side(cut)
            for nodes in regions.block(cut):
                members += nodes
        else:
            members += regions.passage(cut)
    members += regions.glue(made.halves.features) + regions.head()
    assert len({id(node) for node in members}) == len(members)
    assert {id(node) for node in made.halves.backbone.graph} <= {id(node) for node in members}
    results = {cut.result for cut in made.halves.adapted}
    assert not results & {value_name(v) for node in members for v in node.outputs}


def test_a_block_owns_what_only_it_needs() -> None:
    made = cases.made("plain")
    regions = Regions(made.halves)
    cut = made.halves.cuts[0]
    regions.glue(cut.input)
    shared, own = regions.block(cut)
    assert shared == []
    assert value_name(own[-1].outputs[0]) == cut.output
    assert [n.op_type for n in own].count("Conv") == 2


def test_what_two_blocks_read_is_shared() -> None:
    """A value that a later block reads too may not hide inside a branch."""
    halves = cases.two_inputs()
    regions = Regions(halves)
    sizes = []
    for cut in halves.cuts:
        regions.glue(cut.input)
        shared, own = regions.block(cut)
        sizes.append((len(shared), len(own)))
    assert sizes[1][0] > 0, "the steering value is computed outside the branch"
    assert all(own for _, own in sizes)


def test_constants_of_both_halves_are_found() -> None:
    made = cases.made("plain")
    regions = Regions(made.halves)
    assert regions.constant("head.weight") is not None
    assert regions.constant("backbone.blocks.0.conv1.weight+bn") is not None
    assert regions.constant("nothing") is None

"""Boundaries of conditionals: found, put back, and refused where they cannot be shown."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import branch_graphs
from tests.support.real_parser import Graph
from toolchain.core.errors import ConditionalError
from toolchain.device.engine.build import BuildOptions, build
from toolchain.device.engine.conditionals import ConditionalReport, examine, repair, require
from toolchain.device.engine.features import TensorRT
from toolchain.device.engine.kit import ClassProfile
from toolchain.device.engine.parse import ParsedNetwork, parse

CHECKS = BuildOptions("fp32", ClassProfile(1, 4, 8), cpu_only=True)


def bypassed(network: ParsedNetwork) -> int:
    return branch_graphs.bypass(network.definition)


@pytest.mark.parametrize("name", ["swap-if", "static-if"])
def test_current_parser_makes_all(rtx: TensorRT, graph: Graph, name: str) -> None:
    report = examine(parse(rtx, graph(name)).definition, rtx)
    assert report.conditionals
    assert report.missing == frozenset()
    assert report.left == ()
    # Each branch reads the map and the correction; both branches share the layers for them.
    assert len(report.entries) == 4 * len(report.conditionals)
    assert len(report.pairs) == report.layers == 2 * len(report.conditionals)


@pytest.mark.parametrize("name", ["swap-if", "static-if"])
def test_all_removed_are_put_back(rtx: TensorRT, graph: Graph, name: str) -> None:
    network = parse(rtx, graph(name))
    before, wired = examine(network.definition, rtx), branch_graphs.wiring(network.definition)
    assert bypassed(network) >= len(before.entries)
    without = examine(network.definition, rtx)
    assert (without.missing, without.entries, without.layers) == (before.entries, frozenset(), 0)
    after = repair(network.definition, rtx)
    assert after.added == before.layers
    assert (after.entries, after.layers, after.missing) == (
        before.entries,
        before.layers,
        frozenset(),
    )
    assert branch_graphs.wiring(network.definition) == wired
    require(after, conditionals=len(before.conditionals), pairs=before.layers)


def test_repaired_network_builds(rtx: TensorRT, graph: Graph) -> None:
    network = parse(rtx, graph("swap-if"))
    bypassed(network)
    repair(network.definition, rtx)
    assert build(network, CHECKS, free_bytes=1 << 30).plan


def test_repair_of_a_whole_network_changes_nothing(rtx: TensorRT, graph: Graph) -> None:
    network = parse(rtx, graph("swap-if"))
    layers, wired = network.definition.num_layers, branch_graphs.wiring(network.definition)
    assert repair(network.definition, rtx).added == 0
    assert (network.definition.num_layers, branch_graphs.wiring(network.definition)) == (
        layers,
        wired,
    )


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(gone=st.sets(st.integers(0, 40)))
def test_any_subset_is_put_back(rtx: TensorRT, graph: Graph, gone: set[int]) -> None:
    network = parse(rtx, graph("swap-if"))
    before, wired = examine(network.definition, rtx), branch_graphs.wiring(network.definition)
    branch_graphs.bypass(network.definition, gone.__contains__)
    after = repair(network.definition, rtx)
    assert (after.entries, after.layers, after.left) == (before.entries, before.layers, ())
    assert branch_graphs.wiring(network.definition) == wired
    assert repair(network.definition, rtx).added == 0


def test_constants_shared_between_branches(rtx: TensorRT) -> None:
    network = parse(rtx, branch_graphs.shared_constants())
    before, wired = examine(network.definition, rtx), branch_graphs.wiring(network.definition)
    # One branch made the constant; for the three others it comes from outside.
    assert len(before.entries) == 4
    assert {entry.tensor for entry in before.entries} == {"x"}
    assert (before.left, before.missing) == ((), frozenset())
    bypassed(network)
    missing = examine(network.definition, rtx).missing
    assert sum(entry.tensor == "big_output" for entry in missing) == 3
    assert repair(network.definition, rtx).entries == before.entries
    assert branch_graphs.wiring(network.definition) == wired
    assert build(network, CHECKS, free_bytes=1 << 30).plan


def test_branch_that_passes_its_input_on(rtx: TensorRT) -> None:
    then = branch_graphs.branch("t", [branch_graphs.node("Relu", ["x"], "t")], "t")
    other = branch_graphs.branch("e", [branch_graphs.node("Identity", ["x"], "e")], "e")
    network = parse(rtx, branch_graphs.model([branch_graphs.gated("z", "c0", then, other)], ["z"]))
    bypassed(network)
    report = repair(network.definition, rtx)
    assert (len(report.entries), report.layers) == (2, 1)
    require(report, conditionals=1, pairs=1)


def test_nested_conditionals_are_left_and_told(rtx: TensorRT) -> None:
    network = parse(rtx, branch_graphs.nested())
    bypassed(network)
    layers = network.definition.num_layers
    report = repair(network.definition, rtx)
    assert network.definition.num_layers == layers
    assert len(report.left) == 2
    with pytest.raises(ConditionalError, match="inside another conditional, or holds one"):
        require(report, conditionals=2, pairs=len(report.pairs))


def test_layer_read_by_both_branches_is_left(rtx: TensorRT) -> None:
    network = parse(rtx, branch_graphs.shared_constants())
    layers = {one.name: one for one in map(network.definition.get_layer, range(17))}
    # As if a parser had made one layer for both: the else-branch reads a product of the other's.
    layers["e0"].set_input(0, layers["t0m"].get_output(0))
    report = repair(network.definition, rtx)
    assert any("'t0m' belongs to both branches" in line for line in report.left)
    with pytest.raises(ConditionalError, match="belongs to both branches"):
        require(report, conditionals=2, pairs=len(report.pairs))


def test_layer_read_from_outside_is_left(rtx: TensorRT) -> None:
    network = parse(rtx, branch_graphs.shared_constants())
    layers = {one.name: one for one in map(network.definition.get_layer, range(18))}
    layers["z"].set_input(0, layers["t0m"].get_output(0))
    report = examine(network.definition, rtx)
    assert report.left == ("y0: the layer 't0m' is read outside, by 'z'",)


def test_other_counts_are_refused() -> None:
    report = ConditionalReport(("a", "b"), frozenset(), frozenset(), (), 0)
    with pytest.raises(ConditionalError, match="expected 1 conditionals, got 2"):
        require(report, conditionals=1, pairs=0)
    with pytest.raises(ConditionalError, match="expected 4 outer tensors to be read, got 0"):
        require(report, conditionals=2, pairs=4)


def test_missing_boundaries_are_refused_by_name(rtx: TensorRT, graph: Graph) -> None:
    network = parse(rtx, graph("swap-if"))
    bypassed(network)
    report = examine(network.definition, rtx)
    with pytest.raises(ConditionalError, match=r"'adaptor\.\w+' enters out\.\w+/else directly"):
        require(report, conditionals=len(report.conditionals), pairs=0)

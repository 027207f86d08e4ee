"""Gates that a static graph has resolved: the graph's own nodes tell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import cases
from tests.support.cases import Made
from toolchain.bundle.linkage import STATIC_IF, STATIC_ROWS, SWAP_IF, Linkage
from toolchain.bundle.resolved import resolved_gates
from toolchain.core.errors import BundleError

GATES = ("block00", "block02")


@pytest.fixture(scope="module")
def plain() -> Made:
    return cases.made("plain")


@pytest.mark.parametrize("linkage", [STATIC_IF, STATIC_ROWS])
@pytest.mark.parametrize("rates", [(0.0, 1.0), (1.0, 0.0), (0.5, 1.0), (0.999, 0.001)])
def test_states_are_those_that_the_linker_drew(
    plain: Made, linkage: Linkage, rates: tuple[float, float]
) -> None:
    given_rates = dict(zip(GATES, rates, strict=True))
    graph = plain.graph(linkage, rates=given_rates)
    states = {site: rate == 1 for site, rate in given_rates.items() if rate in (0, 1)}
    assert resolved_gates(graph, GATES, "graph") == states


def test_a_graph_that_swaps_resolves_nothing(plain: Made) -> None:
    assert resolved_gates(plain.graph(SWAP_IF), GATES, "graph") == {}


def test_a_site_that_the_graph_does_not_have_is_told(plain: Made) -> None:
    with pytest.raises(BundleError, match=r"expected a node that gives out\.block09"):
        resolved_gates(plain.graph(STATIC_IF), ["block09"], "graph")


@given(st.binary(max_size=200))
def test_any_bytes_are_states_or_an_error_of_ours(data: bytes) -> None:
    try:
        assert resolved_gates(data, (), "graph") == {}
    except BundleError as err:
        assert "expected an ONNX model" in err.message

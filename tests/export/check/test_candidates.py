"""Building what a check runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import cases
from toolchain.bundle.linkage import STATIC_IF, SWAP_IF, linkage_of
from toolchain.core.errors import GraphError
from toolchain.export.check import candidates

IMAGES = cases.CASES["plain"].images(2, seed=6).numpy()


@pytest.mark.parametrize(
    ("name", "takes_slots", "batches"),
    [
        ("swap-if", True, (1,)),
        ("swap-rows", True, (1, 16)),
        ("static-if", False, (1,)),
        ("static-rows", False, (1, 16)),
    ],
)
def test_a_subject_knows_its_flavour_and_form(name: str, takes_slots: Any, batches: Any) -> None:
    """A batch-1 graph is looped, so one size tells all; a static one has no slots to force."""
    made = cases.made("plain")
    linkage = linkage_of(name)
    assert linkage is not None
    graph = made.graph(linkage)
    candidate = candidates.shipped(linkage, graph, made.folder, made.slots)
    assert (candidate.name, candidate.takes_slots, tuple(candidate.batches)) == (
        name,
        takes_slots,
        batches,
    )
    assert candidate.run.run(IMAGES, made.slots).logits.shape == (2, 5)


def test_staged_taps_itself() -> None:
    made = cases.made("plain")
    candidate = candidates.staged(made.halves, made.folder)
    assert candidate.tapped is not None
    assert candidate.tapped() is candidate.run


def test_tapped_twins_are_built_when_asked_for(tmp_path: Path) -> None:
    """Building fails late on purpose: after a parity failure only."""
    made = cases.made("plain")
    build = candidates.tapped(made.halves, SWAP_IF, {}, tmp_path, made.slots)
    with pytest.raises(GraphError, match="swap-if: onnxruntime"):
        build()


def test_a_static_graph_needs_its_slots(tmp_path: Path) -> None:
    made = cases.made("plain")
    with pytest.raises(GraphError, match="static-if: onnxruntime"):
        candidates.shipped(STATIC_IF, made.graph(STATIC_IF), tmp_path, {})

"""Blocks that are closed for every picture: as many as the budget says, and to the end."""

from __future__ import annotations

import pytest

from benchmarks import accuracy, closed
from tests.support import stripes, toys


@pytest.mark.parametrize("row", closed.ROWS)
def test_blocks_stay_closed_from_the_first_step_to_the_test(row: str) -> None:
    recipe = stripes.recipe(epochs=2, budget=0.8)
    model = closed.fixed(recipe, stripes.data(), row, toys.backbone("plain"))
    shut = [name for name, gate in model.gates() if float(gate.bias.detach()) < 0]
    assert 0 < closed.share(model, shut) <= 0.8
    assert closed.share(model, shut[:-1]) > 0.8  # none is closed that need not be
    with closed.kept():
        figures = accuracy.trained(model, recipe, stripes.data(), started=0)
    assert figures["executed_share"] == pytest.approx(closed.share(model, shut))
    assert figures["decide"] == 0


def test_a_row_trains_with_the_options_of_da3() -> None:
    recipe = stripes.recipe()
    assert accuracy.changed(recipe, "static", 0) == accuracy.changed(recipe, "da3", 0)

"""Staged segments: rows are routed by their own gate and come back in order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support import cases
from tests.support.cases import close
from toolchain.bundle.golden import shifted
from toolchain.bundle.linkage import Linkage
from toolchain.device.runtime.ort.session import Session
from toolchain.device.runtime.ort.staged import StagedRunner
from toolchain.export.check import candidates


class Counting(Session):
    """A real session that also counts the rows that it was given."""

    rows: dict[str, int]

    def run(self, feeds: Any, outputs: Any = None, limit: Any = None) -> Any:
        first = next(v for n, v in feeds.items() if n.startswith(("out.", "in.", "block", "image")))
        Counting.rows[self.what] = Counting.rows.get(self.what, 0) + len(first)
        return super().run(feeds, outputs, limit)


@pytest.mark.parametrize(("shift", "opened"), [(1000.0, 6), (-1000.0, 0)])
def test_a_row_runs_through_one_branch_only(
    monkeypatch: pytest.MonkeyPatch,
    shift: Any,
    opened: int,
) -> None:
    """Closed gates leave the block's segment unrun, open ones the other."""
    made = cases.made("plain")
    monkeypatch.setattr(candidates, "Session", Counting)
    Counting.rows = {}
    model = made.staged()
    assert isinstance(model, StagedRunner)
    slots = shifted(made.slots, ("block00", "block02"), np.full(2, shift, np.float32))
    model.run(made.case.images(6).numpy(), slots)
    for site in ("block00", "block02"):
        assert Counting.rows.get(f"{site}/opened", 0) == opened
        assert Counting.rows.get(f"{site}/closed", 0) == 6 - opened
    assert Counting.rows["block01/opened"] == 6


def test_mixed_rows_come_back_in_order() -> None:
    """Law: staged answers a batch as it answers its rows."""
    made = cases.made("plain")
    model = made.staged()
    images = made.case.images(9, seed=2).numpy()
    answer = model.run(images, made.slots)
    opened = answer.gates >= 0
    assert (opened.any(axis=0) & ~opened.all(axis=0)).all(), "both branches run"
    alone = np.concatenate([model.run(images[i : i + 1], made.slots).logits for i in range(9)])
    assert close(answer.logits, alone, relative=1e-5)


def test_taps_are_those_of_the_linked_model() -> None:
    made = cases.made("plain")
    images = made.case.images(3).numpy()
    staged = made.staged().run(images, made.slots)
    linked = made.run(Linkage("swap", "rows"), taps=True).run(images, made.slots)
    assert set(staged.taps) == set(linked.taps)
    assert all(close(staged.taps[name], linked.taps[name]) for name in staged.taps)

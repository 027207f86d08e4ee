"""Swapping and switching: every way is timed, in both phases."""

from __future__ import annotations

from typing import Any

import pytest

from toolchain.bench.materials import Materials, foreign
from toolchain.bench.run import QUICK
from toolchain.bench.swap import LATER, SWAPS, switching
from toolchain.bench.ways import OTHERS, OURS


@pytest.mark.parametrize("phase", ["first", "again"])
def test_every_way_is_timed_against_a_whole_session(document: dict[str, Any], phase: str) -> None:
    ready, answered = (document["parts"]["swap"][phase][step] for step in ("ready", "answered"))
    assert list(ready) == list(answered) == [*OURS, *OTHERS]
    assert ready["whole"]["ratio"] == 1.0
    for kind in ready:
        assert answered[kind]["median_ms"] > ready[kind]["median_ms"] > 0


def test_phases_have_their_own_swaps(document: dict[str, Any]) -> None:
    part = document["parts"]["swap"]
    later = len(range(SWAPS)[LATER])
    assert part["first"]["ready"]["bundle"]["rounds"] == QUICK.swap
    assert part["again"]["ready"]["bundle"]["rounds"] == QUICK.swap * later
    assert part["selftest_ms"] > 0


def test_switching_asks_every_domain_twice_a_round(materials: Materials) -> None:
    ways = switching(foreign(materials.bundles), threads=1, rounds=2)["ways"]
    assert list(ways) == ["bundle"]
    assert ways["bundle"]["pairs"] == 2 * len(materials.bundles)
    assert ways["bundle"]["switched_p95_ms"] >= ways["bundle"]["switched_ms"] > 0

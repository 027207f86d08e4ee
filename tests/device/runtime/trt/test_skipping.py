"""The proof of skipping: what is forced, and what the figures say; no figure is tested."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.exported import Exported
from toolchain import bundle
from toolchain.bundle.release import Release, read_release
from toolchain.core.arrays import Floats
from toolchain.core.errors import UsageError
from toolchain.device.runtime.backend import Answer
from toolchain.device.runtime.limit import TimeLimit
from toolchain.device.runtime.ort.backend import LinkedModel
from toolchain.device.runtime.ort.session import Session
from toolchain.device.runtime.trt.skipping import Skipping, gated_share, measure_skipping, neutral


class Watched(LinkedModel):
    """Remembers the gates of every answer."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.seen: list[tuple[bool, ...]] = []

    def run_bound(self, images: Floats, binding: Any, limit: TimeLimit | None) -> Answer:
        answer = super().run_bound(images, binding, limit)
        self.seen.append(tuple(map(bool, answer.gates[0] >= 0)))
        return answer


@pytest.fixture
def release(exported: Exported) -> Release:
    return read_release(bundle.open_bundle(exported.bundle))


@pytest.fixture
def watched(exported: Exported, release: Release) -> Watched:
    graph = release.graph("swap-if").read()
    return Watched(Session(graph, folder=Path(exported.backbone)))


def test_all_gates_are_forced_both_ways(watched: Watched, release: Release) -> None:
    size = release.preprocess.size
    skipping = measure_skipping(
        watched, release.slots, release.gates, size=size, share=0.5, rounds=2
    )
    assert skipping.share == 0.5
    assert skipping.open_ms > 0
    assert skipping.closed_ms > 0
    count = len(release.gates)
    assert set(watched.seen) == {(True,) * count, (False,) * count}


def test_an_engine_alone_needs_no_domain(watched: Watched, release: Release) -> None:
    slots = neutral(watched, 3)
    assert {name: array.shape for name, array in slots.items()} == {
        name: (3, *array.shape[1:]) if name.startswith("head.") else array.shape
        for name, array in release.slots.items()
    }
    measure_skipping(
        watched, slots, release.gates, size=release.preprocess.size, share=0.5, rounds=1
    )
    assert len(set(watched.seen)) == 2


def test_without_gates_there_is_nothing_to_prove(watched: Watched, release: Release) -> None:
    with pytest.raises(UsageError, match="gates"):
        measure_skipping(watched, release.slots, (), size=12, share=0.5)


@given(st.floats(0.01, 1e3), st.floats(0, 1), st.floats(0, 2))
def test_half_of_what_could_be_saved_is_asked_for(
    open_ms: float, share: float, part: float
) -> None:
    skipping = Skipping(open_ms, open_ms * (1 - part * share), share)
    if abs(part - 0.5) > 1e-3 and share > 1e-3:
        assert (skipping.verdict == "skipping") == (part > 0.5)


def test_the_share_is_that_of_the_gated_blocks(exported: Exported, release: Release) -> None:
    backbone = bundle.open_backbone(exported.backbone).manifest
    flops = {block.name: block.flops for block in backbone.blocks}
    gated = sum(flops[name] for name in release.gates)
    assert gated_share(backbone, release.gates) == gated / sum(flops.values())
    assert gated_share(backbone, ()) == 0
    assert gated_share(backbone, list(flops)) == 1


def test_slots_are_left_as_they_are(watched: Watched, release: Release) -> None:
    before: Mapping[str, Any] = {name: array.copy() for name, array in release.slots.items()}
    measure_skipping(
        watched,
        release.slots,
        release.gates,
        size=release.preprocess.size,
        share=0.5,
        rounds=1,
    )
    assert all(np.array_equal(before[name], release.slots[name]) for name in before)

"""Every way to have a domain answers what the others answer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest

from toolchain.bench.materials import Materials, foreign
from toolchain.bench.ways import OTHERS, OURS, Kind, Ways, bare, options_of
from toolchain.device import Outcome


@pytest.fixture(scope="module")
def ways(materials: Materials) -> Iterator[Ways]:
    with Ways(materials, threads=1) as opened:
        for kind in opened.kinds:
            opened.prepare(kind, 3)
        yield opened


def logits(ways: Ways, kind: Kind, index: int) -> np.ndarray:
    loaded = ways.load(kind, index)
    answer = loaded.ask(ways.image())
    loaded.drop()
    return answer.logits if isinstance(answer, Outcome) else answer[0]  # type: ignore[index]


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("kind", [*OURS, *OTHERS])
def test_every_way_answers_alike(ways: Ways, kind: Kind, index: int) -> None:
    want = logits(ways, "bundle", index)
    np.testing.assert_allclose(logits(ways, kind, index), want, rtol=1e-3, atol=1e-4)


def test_domains_differ(ways: Ways) -> None:
    assert np.abs(logits(ways, "bundle", 0) - logits(ways, "bundle", 1)).max() > 0.01


def test_what_is_dropped_is_gone(ways: Ways) -> None:
    before = set(ways.runner.domains)
    loaded = ways.load("installed", 1)
    assert len(ways.runner.domains) == len(before) + 1
    loaded.drop()
    assert set(ways.runner.domains) == before


def test_bundles_alone_have_our_ways_alone(materials: Materials) -> None:
    with Ways(foreign(materials.bundles), threads=1) as ways:
        assert ways.kinds == OURS


def test_a_whole_model_needs_no_other_file(materials: Materials) -> None:
    # Given as bytes it has no folder in which anything could lie.
    session = bare(materials.wholes[0].read_bytes(), options_of(1))
    assert [value.name for value in session.get_inputs()] == ["image"]


def test_shared_models_keep_the_backbone_in_one_place(materials: Materials) -> None:
    model = onnx.load(materials.shared[0], load_external_data=False)
    outside = [t.name for t in model.graph.initializer if t.external_data]
    assert outside
    assert all(name.startswith("backbone.") for name in outside)
    branches = [a.g for n in model.graph.node for a in n.attribute if n.op_type == "If"]
    assert branches
    assert not any(branch.initializer for branch in branches)

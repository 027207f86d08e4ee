"""Linkage anew from a bundle's own halves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.damage import repacked
from tests.support.exported import Exported
from toolchain import bundle
from toolchain.bundle.linkage import STATIC_IF
from toolchain.core.errors import BundleError
from toolchain.export.check import relink
from toolchain.export.graph import store
from toolchain.export.graph.link import link


@pytest.fixture(scope="module")
def opened(exported: Exported) -> Any:
    return bundle.open_bundle(exported.bundle), bundle.open_backbone(exported.backbone)


def test_every_shipped_graph_comes_out_byte_for_byte(
    opened: tuple[bundle.Bundle, bundle.BackboneArtefact],
) -> None:
    """Law: link(read_halves(bundle)) is the shipped graph."""
    original, artefact = opened
    halves = relink.halves_of(original, artefact)
    relinked = relink.relink(original, artefact)
    assert relinked.identical == ("swap-if", "swap-rows", "static-if")
    for linkage in relinked.linkages:
        graph = store.to_bytes(link(halves, linkage, rates=relinked.rates))
        assert graph == original.blob(linkage.file)


def test_a_graph_of_another_linking_is_refused(
    exported: Exported, opened: tuple[bundle.Bundle, bundle.BackboneArtefact], tmp_path: Path
) -> None:
    original, artefact = opened
    other = link(relink.halves_of(original, artefact), STATIC_IF, rates={"block00": 0.0})
    path = repacked(exported, tmp_path, {"static-if.onnx": store.to_bytes(other)})
    with pytest.raises(BundleError, match=r"static-if\.onnx is not what linking .* gives"):
        relink.relink(bundle.open_bundle(path), artefact)


def test_rates_of_the_manifest_are_those_that_were_linked(
    exported: Exported, opened: tuple[bundle.Bundle, bundle.BackboneArtefact], tmp_path: Path
) -> None:
    """A manifest that claims a gate never opens does not fit graphs that keep its `If`."""
    blocks = opened[0].manifest.gates.blocks
    lied = tuple(replace(b, rate=0.0) if b.rate is not None else b for b in blocks)
    path = repacked(
        exported, tmp_path, change=lambda m: replace(m, gates=replace(m.gates, blocks=lied))
    )
    with pytest.raises(BundleError, match="static-if"):
        relink.relink(bundle.open_bundle(path), opened[1])


def test_a_bundle_may_ship_fewer_graphs(
    exported: Exported, opened: tuple[bundle.Bundle, bundle.BackboneArtefact], tmp_path: Path
) -> None:
    path = repacked(exported, tmp_path, {"static-if.onnx": None})
    assert relink.relink(bundle.open_bundle(path), opened[1]).identical == ("swap-if", "swap-rows")


def test_tapped_twins_answer_as_the_shipped_graphs(
    exported: Exported, opened: tuple[bundle.Bundle, bundle.BackboneArtefact]
) -> None:
    original, artefact = opened
    from safetensors.numpy import load

    slots = load(original.blob("slots.safetensors"))
    twins = relink.relink(original, artefact).tapped(artefact.path, slots)
    images = np.random.default_rng(0).normal(size=(2, 3, 12, 12)).astype(np.float32)
    answers = {name: build().run(images, slots) for name, build in twins.items()}
    assert {frozenset(a.taps) for a in answers.values()} == {
        frozenset({"out.block00", "out.block02"})
    }
    first = answers["swap-if"].logits
    assert all(np.allclose(a.logits, first, rtol=1e-4, atol=1e-4) for a in answers.values())

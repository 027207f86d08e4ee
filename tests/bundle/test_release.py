"""A release: what running needs of a verified bundle, and nothing else of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from tests.support.damage import repacked
from tests.support.exported import Fleet
from toolchain import bundle
from toolchain.bundle import Manifest
from toolchain.bundle.release import read_release
from toolchain.core.digest import sha256
from toolchain.core.errors import BundleError, VerificationError
from toolchain.export.graph.names import SLOTS_FILE


def test_a_release_is_what_the_bundle_holds(fleet: Fleet) -> None:
    package = bundle.open_bundle(fleet["first"].bundle)
    release = read_release(package)
    manifest = package.manifest
    assert (release.name, release.digest) == ("toy_chirps", package.manifest_digest)
    assert release.classes == manifest.classes
    assert release.backbone == manifest.backbone
    assert release.gates == ("block00", "block02")
    assert set(release.graphs) == {"swap-if", "swap-rows", "static-if"}
    for graph in release.graphs.values():
        assert sha256(graph.read()) == graph.digest
    slots = load(package.blob(SLOTS_FILE))
    assert release.slots.keys() == slots.keys() == {slot.name for slot in manifest.adaptor.slots}
    for name, array in release.slots.items():
        assert np.array_equal(array, slots[name])
    assert release.slots_bytes == sum(array.nbytes for array in slots.values())
    assert len(release.golden()) == manifest.selftest.samples


def test_slots_cannot_be_changed(fleet: Fleet) -> None:
    """A request that runs reads them: nobody may write there."""
    release = read_release(bundle.open_bundle(fleet["first"].bundle))
    for array in release.slots.values():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


@pytest.mark.parametrize("name", ["da2", "head"])
def test_a_domain_without_gates_has_none(fleet: Fleet, name: str) -> None:
    release = read_release(bundle.open_bundle(fleet[name].bundle))
    assert release.gates == ()
    assert release.resolved() == {}


@pytest.mark.parametrize("name", ["first", "bgr", "grey"])
def test_preprocessing_survives_the_bundle(fleet: Fleet, name: str) -> None:
    package = bundle.open_bundle(fleet[name].bundle)
    assert package.manifest.preprocess == fleet[name].domain.recipe.preprocess


@pytest.mark.parametrize("rate", [0.0, 0.5, None])
def test_the_graph_says_which_gates_are_resolved_and_not_the_manifest(
    fleet: Fleet, tmp_path: Path, rate: float | None
) -> None:
    """Attack: a manifest that was sealed again with other rates."""

    def change(manifest: Manifest) -> Manifest:
        blocks = tuple(replace(block, rate=rate) for block in manifest.gates.blocks)
        return replace(manifest, gates=replace(manifest.gates, blocks=blocks))

    for name, states in (("always", {"block00": True}), ("first", {})):
        path = repacked(fleet[name], tmp_path, change=change)
        assert read_release(bundle.open_bundle(path)).resolved() == states


def test_a_graph_that_is_not_there_is_told(fleet: Fleet, tmp_path: Path) -> None:
    path = repacked(fleet["first"], tmp_path, {"static-if.onnx": None})
    release = read_release(bundle.open_bundle(path))
    with pytest.raises(BundleError, match=r"expected the linked graph static-if, got \['swap-if'"):
        release.graph("static-if")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"interpolation": "seam"}, "interpolation"),
        ({"crop": "random"}, "crop"),
        ({"size": 2000, "resize": 2000}, "size"),
        ({"std": (1e-30, 1.0, 1.0)}, "std"),
    ],
)
def test_preprocessing_that_a_device_cannot_do_is_refused(
    fleet: Fleet, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    """The manifest's schema takes what can be done, and nothing else."""
    with pytest.raises(BundleError, match=rf"preprocess\.{told}"):
        repacked(
            fleet["first"],
            tmp_path,
            change=lambda m: replace(m, preprocess=replace(m.preprocess, **change)),
        )


def test_golden_data_are_read_when_they_are_asked_for_and_held_against_the_manifest(
    fleet: Fleet, tmp_path: Path
) -> None:
    path = repacked(fleet["first"], tmp_path, {"golden.safetensors": b"no such thing"})
    release = read_release(bundle.open_bundle(path))
    with pytest.raises(VerificationError, match="expected golden data"):
        release.golden()


def test_golden_data_of_another_domain_are_refused(fleet: Fleet, tmp_path: Path) -> None:
    (name,) = (other := bundle.open_bundle(fleet["digits"].bundle)).names("golden")
    path = repacked(fleet["first"], tmp_path, {name: other.blob(name)})
    with pytest.raises(BundleError, match="expected logits of 8 classes, got 10"):
        read_release(bundle.open_bundle(path)).golden()

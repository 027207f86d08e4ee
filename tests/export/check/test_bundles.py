"""Checking a finished bundle: with everything, without torch, without onnx, and after sabotage."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from tests.support.attacks_manifest import ATTACKS
from tests.support.damage import repacked, with_slots, with_weights
from tests.support.exported import Exported, Fleet, make_domain
from toolchain import bundle
from toolchain.bundle.golden import read_golden
from toolchain.bundle.linkage import SHIPPED, STATIC_ROWS
from toolchain.core.errors import (
    BackboneMismatchError,
    BundleError,
    DataError,
    ParityError,
    VerificationError,
)
from toolchain.export.check import bundles, candidates, parity, relink
from toolchain.export.check.bundles import check_bundle
from toolchain.export.graph import store
from toolchain.export.graph.link import link

ROOT = Path(__file__).parents[3]
# Refuses packages as if they were not installed, then checks and tells what was imported.
PROGRAM = """
import importlib.abc, importlib.util, json, sys
from pathlib import Path
blocked = sys.argv[3].split(",")
find_spec = importlib.util.find_spec
def installed(name, *rest):
    return None if name.split(".")[0] in blocked else find_spec(name, *rest)
importlib.util.find_spec = installed
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from toolchain.export.check.bundles import check_bundle
found = check_bundle(Path(sys.argv[1]), backbone=Path(sys.argv[2]))
print(json.dumps({
    "flavours": sorted({c.flavour for c in found.report.comparisons}),
    "passed": found.report.passed, "relinked": found.relinked, "not_run": found.not_run,
    "loaded": sorted({"torch", "onnx", "onnx_ir", "onnxscript"} & set(sys.modules))}))
"""


def elsewhere(exported: Exported, blocked: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, exported.bundle, exported.backbone, blocked],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_a_fresh_bundle_passes_and_relinks_byte_for_byte(exported: Exported) -> None:
    """Law: an export's bundle passes its own check, and its graphs are what its halves link to."""
    check = check_bundle(exported.bundle)
    assert check.report.passed
    assert check.backbone == exported.backbone
    assert check.domain == "toy_chirps"
    assert check.relinked == ("swap-if", "swap-rows", "static-if")
    assert check.not_run == ()
    compared = {(c.flavour, c.batch) for c in check.report.comparisons}
    assert compared == {
        ("staged", 1),
        ("staged", 16),
        ("swap-if", 1),
        ("swap-rows", 1),
        ("swap-rows", 16),
        ("static-if", 1),
    }
    assert all(c.max_relative < 1e-5 for c in check.report.comparisons)


def test_torch_is_not_needed(exported: Exported) -> None:
    document = elsewhere(exported, "torch,onnxscript")
    assert document["passed"]
    assert document["loaded"] == ["onnx", "onnx_ir"]
    assert document["flavours"] == ["staged", "static-if", "swap-if", "swap-rows"]
    assert document["relinked"] == ["swap-if", "swap-rows", "static-if"]


def test_onnx_is_not_needed_and_what_was_not_run_is_told(exported: Exported) -> None:
    document = elsewhere(exported, "torch,onnxscript,onnx,onnx_ir")
    assert document["passed"]
    assert document["loaded"] == []
    assert document["flavours"] == ["static-if", "swap-if", "swap-rows"]
    assert document["relinked"] == []
    (reason,) = document["not_run"]
    assert "onnx and onnx-ir are not installed" in reason
    assert "pip install '.[check]'" in reason


@pytest.mark.parametrize("given", ["artefact", "folder", "beside"])
def test_the_backbone_is_found_where_it_may_lie(exported: Exported, given: Any) -> None:
    where = {"artefact": exported.backbone, "folder": exported.backbone.parent, "beside": None}
    assert check_bundle(exported.bundle, backbone=where[given]).report.passed


def test_a_missing_backbone_is_told_with_the_place(exported: Exported, tmp_path: Path) -> None:
    alone = tmp_path / exported.bundle.name
    shutil.copy(exported.bundle, alone)
    with pytest.raises(
        DataError, match=r"expected the backbone backbone-toy-12px-[0-9a-f]{12} at"
    ) as e:
        check_bundle(alone)
    assert str(tmp_path) in str(e.value)
    assert "--backbone DIR" in e.value.fix


def test_a_bundle_for_another_backbone_shows_both_digests(
    exported: Exported, tmp_path: Path
) -> None:
    """Right format, other weights: both digests of both sides are in the message."""
    artefact = bundle.open_backbone(exported.backbone)
    mine = artefact.manifest.weights_digest
    other = replace(artefact.manifest, weights_digest="sha256:" + "ab" * 32)
    written = bundle.write_backbone(
        tmp_path,
        other,
        graph=artefact.graph_path.read_bytes(),
        weights=artefact.weights_path.read_bytes(),
    )
    with pytest.raises(BackboneMismatchError) as caught:
        check_bundle(exported.bundle, backbone=written.path)
    assert mine in str(caught.value)
    assert "sha256:" + "ab" * 32 in str(caught.value)


SLOTS = [
    ("block00.adaptor.expand.bias", "out.block00"),
    ("block00.adaptor.reduce.weight", "out.block00"),
    ("block02.adaptor.expand.weight", "out.block02"),
    ("head.weight", "logits"),
]


@pytest.mark.parametrize(("slot", "first"), SLOTS)
def test_an_altered_slot_is_found_and_the_first_block_named(
    exported: Exported, tmp_path: Path, slot: Any, first: Any
) -> None:
    """Digests agree, graphs relink: only running it can tell, and it tells where."""

    def edit(slots: Any) -> None:
        slots[slot] *= np.float32(1.5)
        slots[slot] += np.float32(0.05)

    path = with_slots(exported, tmp_path, edit)
    assert bundle.open_bundle(path)
    with pytest.raises(ParityError) as caught:
        check_bundle(path)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    for flavour in ("swap-if", "swap-rows", "static-if", "staged"):
        line = next(line for line in message.splitlines() if flavour in line)
        assert line.endswith(f"first diverging at {first}"), line


WEIGHTS = [
    ("backbone.stem.0.weight+bn", "out.block00"),
    ("backbone.blocks.0.conv1.weight+bn", "out.block00"),
    ("backbone.blocks.1.conv2.weight+bn", "out.block02"),
    ("backbone.blocks.2.conv2.bias+bn", "out.block02"),
]


@pytest.mark.parametrize(("weight", "first"), WEIGHTS)
def test_an_altered_backbone_weight_is_found_and_the_first_block_named(
    exported: Exported, tmp_path: Path, weight: Any, first: Any
) -> None:
    """The blob is altered consistently with its manifest, so that only parity can notice.

    ``block01`` changes the shape and has no adaptor here: its fault shows at the next result.
    """

    def edit(tensors: Any) -> None:
        tensors[weight] *= np.float32(1.2)
        tensors[weight] += np.float32(0.02)

    path = with_weights(exported, tmp_path, edit)
    with pytest.raises(ParityError) as caught:
        check_bundle(path)
    line = next(line for line in str(caught.value).splitlines() if "swap-rows batch 16" in line)
    assert line.endswith(f"first diverging at {first}"), line


def test_an_altered_graph_is_refused_before_it_runs(exported: Exported, tmp_path: Path) -> None:
    """A shipped graph that is not what the halves link to is no mere parity failure."""
    opened = bundle.open_bundle(exported.bundle)
    path = repacked(exported, tmp_path, {"swap-if.onnx": opened.blob("swap-rows.onnx")})
    with pytest.raises(BundleError, match=r"swap-if\.onnx is not what linking"):
        check_bundle(path)


def test_a_graph_that_is_no_onnx_is_refused(exported: Exported, tmp_path: Path) -> None:
    path = repacked(exported, tmp_path, {"domain.onnx": b"\xff" * 100})
    with pytest.raises(Exception, match=r"domain\.onnx: not an ONNX model") as caught:
        check_bundle(path)
    assert caught.type.__module__ == "toolchain.core.errors"


def test_damaged_golden_data_is_refused(exported: Exported, tmp_path: Path) -> None:
    path = repacked(exported, tmp_path, {"golden.safetensors": b"\x08" + b"\x00" * 40})
    with pytest.raises(VerificationError, match=r"golden\.safetensors: expected golden data"):
        check_bundle(path)


STRANGE: dict[str, tuple[dict[str, Callable[[Any], Any]], str]] = {
    "classes": ({"logits": lambda a: a[:, :-1]}, "expected logits of"),
    "pictures": ({"pixels": lambda a: a[:, :8, :8]}, "expected pictures of 12 pixels, got 8"),
    "gates": ({"gate_sites": lambda _: ("block00", "block07")}, r"got \['block07'\]"),
}


@pytest.mark.parametrize("kind", sorted(STRANGE))
def test_golden_data_of_another_domain_are_refused(
    exported: Exported, tmp_path: Path, kind: Any
) -> None:
    """Right by themselves, but not this bundle's: refused before anything runs."""
    changes, words = STRANGE[kind]
    opened = bundle.open_bundle(exported.bundle)
    good = read_golden(opened.blob("golden.safetensors"), "golden")
    edited = replace(good, **{name: edit(getattr(good, name)) for name, edit in changes.items()})
    path = repacked(exported, tmp_path, {"golden.safetensors": edited.to_bytes()})
    with pytest.raises(BundleError, match=rf"golden\.safetensors: .*{words}"):
        check_bundle(path)


def test_a_flipped_bit_is_found_before_anything_runs(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(exported.bundle.read_bytes())
    data[len(data) // 2] ^= 4
    path = tmp_path / exported.bundle.name
    path.write_bytes(data)
    monkeypatch.setattr(candidates, "shipped", None)
    with pytest.raises(BundleError):
        check_bundle(path, backbone=exported.backbone)


def test_a_flipped_bit_of_the_backbone_is_found(exported: Exported, tmp_path: Path) -> None:
    place = tmp_path / exported.backbone.name
    shutil.copytree(exported.backbone, place)
    weights = place / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-9] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError, match=r"weights\.safetensors: expected sha256:"):
        check_bundle(exported.bundle, backbone=place)


def test_golden_cases_of_a_bundle_cover_both_states(exported: Exported) -> None:
    """Law: every gate is open in a case and closed in another, as the manifest says."""
    opened = bundle.open_bundle(exported.bundle)
    golden = read_golden(opened.blob("golden.safetensors"), "golden.safetensors")
    states = golden.states()
    assert set(states) == {"block00", "block02"}
    assert all(s.open and s.closed for s in states.values())
    recorded = opened.manifest.selftest.gate_states
    assert {n: (s.open, s.closed, s.forced) for n, s in states.items()} == {
        n: (s.open, s.closed, s.forced) for n, s in recorded.items()
    }


def test_a_tolerance_can_be_given(exported: Exported) -> None:
    with pytest.raises(ParityError):
        check_bundle(exported.bundle, tolerance=1e-12)
    assert check_bundle(exported.bundle, tolerance=parity.TOLERANCE).report.tolerance == 1e-4


def test_preprocessing_survives_the_manifest(exported: Exported) -> None:
    opened = bundle.open_bundle(exported.bundle)
    assert opened.manifest.preprocess == exported.domain.recipe.preprocess


def test_another_domain_shares_the_backbone_artefact(exported: Exported, tmp_path: Path) -> None:
    """One backbone, many domains: the artefact of the first serves the second."""
    from toolchain.export.pipeline import export

    second = make_domain(tmp_path, name="toy_other", method="da2", seed=5)
    report = export(
        second.recipe,
        checkpoint=second.checkpoint,
        dist=exported.bundle.parent,
        cache=exported.cache,
    )
    assert report.backbone_reused
    assert report.backbone == exported.backbone
    assert check_bundle(report.bundle).report.passed
    assert check_bundle(exported.bundle).report.passed


@pytest.mark.parametrize("left_out", ["swap-if.onnx", "swap-rows.onnx", "static-if.onnx"])
def test_a_bundle_without_a_graph_is_refused(
    exported: Exported, tmp_path: Path, left_out: str
) -> None:
    """What is not there cannot fail: it must not pass either."""
    with pytest.raises(BundleError, match="expected the linked graphs"):
        check_bundle(repacked(exported, tmp_path, {left_out: None}))


def without(*stems: str) -> Callable[[Any], Any]:
    """A manifest as an export would write it that never compared these graphs."""
    return lambda manifest: replace(
        manifest,
        parity={k: v for k, v in manifest.parity.items() if k.partition(".")[0] not in stems},
    )


@pytest.mark.parametrize("onnx", [True, False])
def test_a_bundle_that_ships_fewer_graphs_is_checked_for_those(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, onnx: Any
) -> None:
    """What a bundle says it holds counts, not what today's export ships."""
    monkeypatch.setattr(bundles, "_has_onnx", lambda: onnx)
    path = repacked(exported, tmp_path, {"static-if.onnx": None}, without("static-if"))
    check = check_bundle(path)
    assert check.report.passed
    assert check.relinked == (("swap-if", "swap-rows") if onnx else ())
    flavours = {c.flavour for c in check.report.comparisons}
    assert flavours - {"staged"} == {"swap-if", "swap-rows"}


def test_a_bundle_that_ships_more_graphs_is_checked_for_all(
    exported: Exported, tmp_path: Path
) -> None:
    """Today's export does not ship static-rows; a bundle that has it is held to it."""
    opened = bundle.open_bundle(exported.bundle)
    halves = relink.halves_of(opened, bundle.open_backbone(exported.backbone))
    rates = {b.name: b.rate for b in opened.manifest.gates.blocks if b.rate is not None}
    graph = store.to_bytes(link(halves, STATIC_ROWS, rates=rates))
    roles = {"static-rows.onnx": "static"}
    check = check_bundle(repacked(exported, tmp_path, {"static-rows.onnx": graph}, roles=roles))
    assert check.relinked == ("swap-if", "swap-rows", "static-if", "static-rows")
    compared = {(c.flavour, c.batch) for c in check.report.comparisons}
    assert {("static-rows", 1), ("static-rows", 16)} <= compared
    damaged = {"static-rows.onnx": opened.blob("static-if.onnx")}
    with pytest.raises(BundleError, match=r"static-rows\.onnx is not what linking"):
        check_bundle(repacked(exported, tmp_path, damaged, roles=roles))


def test_a_bundle_without_any_linked_graph_is_refused(exported: Exported, tmp_path: Path) -> None:
    stems = [linkage.stem for linkage in SHIPPED]
    path = repacked(exported, tmp_path, {f"{stem}.onnx": None for stem in stems}, without(*stems))
    with pytest.raises(BundleError, match="expected at least one linked graph, got none"):
        check_bundle(path)


@pytest.mark.parametrize("onnx", [True, False])
@pytest.mark.parametrize(
    ("name", "role"),
    [("mask-if.onnx", "swap"), ("swap-all.onnx", "swap"), ("swap-if.onnx", "static")],
)
def test_an_unknown_linked_graph_is_a_clear_error(
    exported: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    onnx: Any,
    name: str,
    role: str,
) -> None:
    """A later version's graph, or a known one under another role, is never passed unseen."""
    monkeypatch.setattr(bundles, "_has_onnx", lambda: onnx)
    graph = bundle.open_bundle(exported.bundle).blob("swap-if.onnx")
    path = repacked(exported, tmp_path, {name: graph}, roles={name: role})
    with pytest.raises(BundleError, match="expected linked graphs among") as caught:
        check_bundle(path)
    assert repr((role, name)) in str(caught.value)
    assert "the toolchain that wrote the bundle" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "source"),
    [("swap-if.onnx", "swap-rows.onnx"), ("swap-rows.onnx", "swap-if.onnx")],
)
def test_a_graph_is_held_to_its_name_without_onnx(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str
) -> None:
    monkeypatch.setattr(bundles, "_has_onnx", lambda: False)
    opened = bundle.open_bundle(exported.bundle)
    path = repacked(exported, tmp_path, {name: opened.blob(source)})
    with pytest.raises(BundleError, match=f"{name.removesuffix('.onnx')}: expected"):
        check_bundle(path)


def test_a_damaged_graph_is_a_verification_failure_without_onnx(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "_has_onnx", lambda: False)
    opened = bundle.open_bundle(exported.bundle)
    for name in ("swap-if.onnx", "static-if.onnx"):
        for data in (b"", opened.blob(name)[:-40], opened.blob(name).replace(b"Conv", b"C\xffnv")):
            with pytest.raises(VerificationError):
                check_bundle(repacked(exported, tmp_path, {name: data}))


def test_a_manifest_that_counts_other_cases_is_refused(exported: Exported, tmp_path: Path) -> None:
    path = repacked(
        exported,
        tmp_path,
        change=lambda m: replace(m, selftest=replace(m.selftest, samples=4000)),
    )
    with pytest.raises(BundleError, match="expected 4000 samples"):
        check_bundle(path)


def test_a_preprocessing_that_cannot_be_meant_is_refused(
    exported: Exported, tmp_path: Path
) -> None:
    path = tmp_path / exported.bundle.name
    path.write_bytes(ATTACKS["crop_unheard_of"].make(exported.bundle.read_bytes()))
    with pytest.raises(BundleError, match=r"preprocess\.crop"):
        check_bundle(path)


@pytest.mark.parametrize("name", ["tuned", "masked"])
def test_a_domain_that_changes_the_backbone_is_checked_on_its_own_weights(
    fleet: Fleet, name: str
) -> None:
    """Linked anew from the frozen backbone's graph, byte for byte, and run with the patch."""
    check = check_bundle(fleet[name].bundle)
    assert check.report.passed
    assert set(check.relinked) == {linkage.stem for linkage in SHIPPED}
    assert check.backbone == fleet[name].backbone
    assert any(line.startswith("patch: ") for line in check.verified)


def test_a_patch_with_other_values_fails_although_every_digest_is_right(
    fleet: Fleet, tmp_path: Path
) -> None:
    exported = fleet["tuned"]
    opened = bundle.open_bundle(exported.bundle)
    tensors = load_tensors(opened.blob("patch.safetensors"))
    changed = {name: 2 * array for name, array in tensors.items()}
    base = bundle.open_backbone(exported.backbone).weights()
    made = bundle.make_patch(base, save_tensors({**load_tensors(base), **changed}))
    assert made is not None
    path = repacked(
        exported,
        tmp_path,
        {"patch.safetensors": made.data},
        lambda manifest: replace(manifest, patch=made.about),
    )
    with pytest.raises(ParityError):
        check_bundle(path)


def test_a_patch_of_another_backbone_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    exported = fleet["masked"]
    other = bundle.open_bundle(fleet["tuned"].bundle)
    assert other.manifest.patch is not None
    about = replace(other.manifest.patch, digest="sha256:" + "0" * 64)
    path = repacked(
        exported,
        tmp_path,
        {"patch.safetensors": other.blob("patch.safetensors")},
        lambda manifest: replace(manifest, patch=about),
    )
    with pytest.raises(VerificationError, match="expected the patched weights") as caught:
        check_bundle(path)
    assert caught.value.exit_code == 4

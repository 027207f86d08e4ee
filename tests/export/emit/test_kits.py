"""Kits beside the bundle: shared by domains, kept where they are the same, refused where not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.exported import Fleet
from tests.support.kitted import ORDERS, Kitted
from toolchain import bundle
from toolchain.core.canonical import canonical_json
from toolchain.core.digest import sha256
from toolchain.core.errors import BundleError, ExistsError, PrecisionError, StorageError, UsageError
from toolchain.device.boards.target import find
from toolchain.device.engine.kit import KIT_NAME, open_kit
from toolchain.export.emit.kits import kept_ranges
from toolchain.export.emit.models import KitOrder
from toolchain.export.pipeline import ExportReport, export


def again(kitted: Kitted, dist: Path, *orders: KitOrder, overwrite: bool = True) -> ExportReport:
    domain = kitted.exported.domain
    return export(
        domain.recipe,
        checkpoint=domain.checkpoint,
        dist=dist,
        cache=kitted.exported.cache,
        orders=orders,
        overwrite=overwrite,
    )


def order(key: str) -> KitOrder:
    target, precision, flavours = ORDERS[key]
    return KitOrder(find(target), precision, flavours)  # type: ignore[arg-type]


def test_the_bundle_says_what_each_precision_costs(kitted: Kitted) -> None:
    plans = bundle.open_bundle(kitted.report.bundle).manifest.plans
    assert {(p.target, p.precision) for p in plans} == {(t, p) for t, p, _ in ORDERS.values()}
    for plan in plans:
        assert plan.samples > 0
        if plan.precision == "fp32":
            assert (plan.agreement, plan.gate_agreement) == (1, 1)
    models = {
        (kit.manifest.target, kit.manifest.precision, entry.digest)
        for kit in kitted.kits.values()
        for entry in kit.manifest.files
        if entry.name == "swap.onnx"
    }
    assert {(p.target, p.precision, p.model) for p in plans} == models


def test_an_export_for_one_kit_keeps_what_was_measured_on_others(
    kitted: Kitted, tmp_path: Path
) -> None:
    shutil.copytree(kitted.folder, tmp_path / "dist")
    report = again(kitted, tmp_path / "dist", order("nano fp32"))
    before = bundle.open_bundle(kitted.report.bundle).manifest.plans
    after = bundle.open_bundle(report.bundle).manifest.plans
    assert sorted(map(repr, after)) == sorted(map(repr, before))


def test_another_training_forgets_what_was_measured(
    fleet: Fleet, kitted: Kitted, tmp_path: Path
) -> None:
    shutil.copytree(kitted.folder, tmp_path / "dist")
    later = fleet["next"].domain
    report = export(
        later.recipe,
        checkpoint=later.checkpoint,
        dist=tmp_path / "dist",
        cache=kitted.exported.cache,
        overwrite=True,
    )
    assert bundle.open_bundle(report.bundle).manifest.plans == ()


def test_kits_hold_no_domain_but_static_ones(kitted: Kitted) -> None:
    release = bundle.open_bundle(kitted.report.bundle).manifest_digest
    for key, kit in kitted.kits.items():
        owners = {(f.domain, f.release) for f in kit.manifest.flavours}
        static = key.endswith("static")
        assert owners == {("toy_chirps", release) if static else (None, None)}
        assert kit.manifest.slots or static


def test_a_second_export_keeps_the_kit(kitted: Kitted, tmp_path: Path) -> None:
    shutil.copytree(kitted.folder, tmp_path / "dist")
    report = again(kitted, tmp_path / "dist", order("orin int8"), order("nano fp32"))
    assert [item.state for item in report.kits] == ["reused", "reused"]
    before = {kit.path.name: kit.digest for kit in kitted.kits.values()}
    assert all(before[item.kit.path.name] == item.kit.digest for item in report.kits)


def test_another_domain_shares_the_kit(fleet: Fleet, kitted: Kitted, tmp_path: Path) -> None:
    shutil.copytree(kitted.folder, tmp_path / "dist")
    other = fleet["digits"].domain
    report = export(
        other.recipe,
        checkpoint=other.checkpoint,
        dist=tmp_path / "dist",
        cache=kitted.exported.cache,
        orders=[order("nano fp32")],
    )
    assert [item.state for item in report.kits] == ["reused"]


def test_int8_ranges_are_kept_for_the_next_domain(kitted: Kitted) -> None:
    kit = kitted.kits["orin int8"]
    ranges = kept_ranges(kit)
    assert ranges == json.loads(kit.read("ranges.json"))
    assert min(ranges.values()) > 0
    assert kept_ranges(kitted.kits["orin fp16"]) == {}


def resealed(path: Path, name: str, data: bytes) -> None:
    """Exchange a file of a kit and its digest, as whoever may write there can."""
    (path / name).write_bytes(data)
    document = json.loads((path / KIT_NAME).read_text())
    for entry in document["files"]:
        if entry["name"] == name:
            entry.update(digest=sha256(data), size=len(data))
    (path / KIT_NAME).write_bytes(canonical_json(document))


def test_ranges_that_none_can_be_are_refused_until_they_are_made_anew(
    kitted: Kitted, tmp_path: Path
) -> None:
    dist = tmp_path / "dist"
    shutil.copytree(kitted.folder, dist)
    path = dist / kitted.kits["orin int8"].path.name
    for value in ("abc", None, True, 0, -1, 1e300):
        resealed(path, "ranges.json", canonical_json({"image": value}))
        with pytest.raises(BundleError, match=r"ranges\.json.*image"):
            kept_ranges(open_kit(path))
    with pytest.raises(BundleError, match=r"ranges\.json.*image"):
        again(kitted, dist, order("orin int8"))
    anew = replace(order("orin int8"), recalibrate=True)
    report = again(kitted, dist, anew)
    assert report.kits[0].kit.digest == kitted.kits["orin int8"].digest


@pytest.mark.parametrize("name", ["swap.onnx", "tail.onnx", "layers.json"])
def test_a_damaged_kit_is_no_kit_to_keep(kitted: Kitted, tmp_path: Path, name: str) -> None:
    dist = tmp_path / "dist"
    shutil.copytree(kitted.folder, dist)
    path = dist / kitted.kits["nano fp32"].path.name
    (path / name).write_bytes((path / name).read_bytes()[:-1])
    (dist / kitted.report.bundle.name).unlink()
    with pytest.raises(BundleError, match=name):
        again(kitted, dist, order("nano fp32"), overwrite=False)
    assert not (dist / kitted.report.bundle.name).exists()
    report = again(kitted, dist, order("nano fp32"))
    assert report.kits[0].state == "replaced"
    assert open_kit(path).digest == kitted.kits["nano fp32"].digest


def test_a_kit_that_lies_about_its_interface_is_another(kitted: Kitted, tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    shutil.copytree(kitted.folder, dist)
    path = dist / kitted.kits["nano fp32"].path.name
    document = json.loads((path / KIT_NAME).read_text())
    document.update(slots=[], gates=[])
    (path / KIT_NAME).write_bytes(canonical_json(document))
    assert again(kitted, dist, order("nano fp32")).kits[0].state == "replaced"


def test_more_classes_than_the_kit_has_room_for(kitted: Kitted, tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    shutil.copytree(kitted.folder, dist)
    path = dist / kitted.kits["nano fp32"].path.name
    document = json.loads((path / KIT_NAME).read_text())
    document["classes"] = {"low": 1, "best": 2, "high": 4}
    (path / KIT_NAME).write_bytes(canonical_json(document))
    (dist / kitted.report.bundle.name).unlink()
    with pytest.raises(ExistsError, match="up to 4 there, 8 here"):
        again(kitted, dist, order("nano fp32"), overwrite=False)
    assert not (dist / kitted.report.bundle.name).exists()


def test_without_its_kits_no_bundle_appears(kitted: Kitted, tmp_path: Path) -> None:
    """A file in the kit's place stands for whatever keeps it from being written."""
    (tmp_path / kitted.kits["nano fp32"].path.name).write_text("in the way")
    with pytest.raises(StorageError):
        again(kitted, tmp_path, order("nano fp32"), overwrite=False)
    assert not list(tmp_path.glob("*.da3b"))


def test_what_was_measured_on_an_older_kit_is_told(
    fleet: Fleet, kitted: Kitted, tmp_path: Path
) -> None:
    dist = tmp_path / "dist"
    shutil.copytree(kitted.folder, dist)
    wide = fleet["wide"].domain
    report = export(
        wide.recipe,
        checkpoint=wide.checkpoint,
        dist=dist,
        cache=kitted.exported.cache,
        orders=[order("nano fp32")],
        overwrite=True,
    )
    assert report.kits[0].stale == (kitted.report.bundle.name,)


def test_flavours_of_a_kit_are_not_dropped(kitted: Kitted, tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    shutil.copytree(kitted.folder, dist)
    less = replace(order("orin int8"), flavours=("swap",))
    (item,) = again(kitted, dist, less).kits
    assert (item.state, item.kit.digest) == ("reused", kitted.kits["orin int8"].digest)


def test_recalibrating_only_widens(kitted: Kitted, tmp_path: Path) -> None:
    shutil.copytree(kitted.folder, tmp_path / "dist")
    kit = kitted.kits["orin int8"]
    report = again(kitted, tmp_path / "dist", replace(order("orin int8"), recalibrate=True))
    # The same pictures need nothing wider.
    assert report.kits[0].state == "reused"
    assert report.kits[0].kit.digest == kit.digest


def test_another_kit_is_refused_before_anything_is_written(
    fleet: Fleet, kitted: Kitted, tmp_path: Path
) -> None:
    dist = tmp_path / "dist"
    shutil.copytree(kitted.folder, dist)
    wide = fleet["wide"].domain
    before = {path.name: path.stat().st_mtime_ns for path in dist.iterdir()}
    with pytest.raises(ExistsError, match=r"is another kit: swap\.onnx"):
        export(
            wide.recipe,
            checkpoint=wide.checkpoint,
            dist=dist,
            cache=kitted.exported.cache,
            orders=[order("nano fp32")],
        )
    assert {path.name: path.stat().st_mtime_ns for path in dist.iterdir()} == before


def test_overwriting_replaces_a_kit_that_differs(
    fleet: Fleet, kitted: Kitted, tmp_path: Path
) -> None:
    dist = tmp_path / "dist"
    shutil.copytree(kitted.folder, dist)
    wide = fleet["wide"].domain
    report = export(
        wide.recipe,
        checkpoint=wide.checkpoint,
        dist=dist,
        cache=kitted.exported.cache,
        orders=[order("nano fp32")],
        overwrite=True,
    )
    (item,) = report.kits
    assert item.state == "replaced"
    assert open_kit(item.kit.path).digest != kitted.kits["nano fp32"].digest


def test_segments_alone_are_refused_where_nothing_runs_them(kitted: Kitted, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="add --flavour swap"):
        again(kitted, tmp_path, KitOrder(find("nano-jp4.6"), "fp32", ("staged",)))
    assert not list(tmp_path.iterdir())


def test_a_precision_that_the_board_lacks(kitted: Kitted, tmp_path: Path) -> None:
    with pytest.raises(PrecisionError, match="Nano"):
        again(kitted, tmp_path, KitOrder(find("nano-jp4.6"), "int8", ("swap",)))
    assert not list(tmp_path.glob("*.da3b"))


def test_boards_without_our_python_get_a_script(kitted: Kitted) -> None:
    for key, kit in kitted.kits.items():
        scripted = find(kit.manifest.target).release.scripted
        names = {entry.name for entry in kit.manifest.files}
        assert ("build.sh" in names) == scripted, key
    text = kitted.kits["nano fp32"].read("build.sh").decode()
    listed = {e.name: e.digest for e in kitted.kits["nano fp32"].manifest.files}
    assert f"{listed['swap.onnx'].removeprefix('sha256:')}  swap.onnx" in text


def test_a_refused_precision_leaves_the_bundle_and_the_other_kits(
    kitted: Kitted, tmp_path: Path
) -> None:
    """A bound that fp16 breaks and fp32 keeps: what was refused is told, all else is there."""
    domain = kitted.exported.domain
    report = export(
        domain.recipe,
        checkpoint=domain.checkpoint,
        dist=tmp_path,
        cache=kitted.exported.cache,
        orders=[order("orin fp16"), order("nano fp32")],
        tolerance=1e-6,
    )
    (refused,) = report.refused
    assert refused.order.precision == "fp16"
    assert "error of a logit: expected at most 1e-06" in refused.reason.message
    assert "--precision fp32" in refused.reason.fix
    assert [item.kit.manifest.precision for item in report.kits] == ["fp32"]
    manifest = bundle.open_bundle(report.bundle).manifest
    assert [plan.precision for plan in manifest.plans] == ["fp32"]
    assert len(list(tmp_path.glob("kit-*"))) == 1


def test_a_wide_bound_for_a_kit_leaves_fp32_as_exact_as_ever(
    kitted: Kitted, tmp_path: Path
) -> None:
    domain = kitted.exported.domain
    report = export(
        domain.recipe,
        checkpoint=domain.checkpoint,
        dist=tmp_path,
        cache=kitted.exported.cache,
        orders=[order("xavier fp16")],
        tolerance=0.04,
    )
    assert report.parity.tolerance == 1e-4
    assert report.manifest.selftest.tolerance_relative == 1e-4

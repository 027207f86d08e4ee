"""Kits beside the bundle: shared by domains, kept where they are the same, refused where not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.exported import Fleet
from tests.kitted import ORDERS, Kitted
from toolchain import bundle
from toolchain.emit.orders import Order
from toolchain.emit.writing import kept_ranges
from toolchain.engine.kit import open_kit
from toolchain.engine.target import find
from toolchain.errors import ExistsError, PrecisionError
from toolchain.export import ExportReport, export


def again(kitted: Kitted, dist: Path, *orders: Order, overwrite: bool = True) -> ExportReport:
    domain = kitted.exported.domain
    return export(
        domain.recipe,
        checkpoint=domain.checkpoint,
        dist=dist,
        cache=kitted.exported.cache,
        orders=orders,
        overwrite=overwrite,
    )


def order(key: str) -> Order:
    target, precision, flavours = ORDERS[key]
    return Order(find(target), precision, flavours)  # type: ignore[arg-type]


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


def test_kits_hold_no_domain_but_static_ones(kitted: Kitted) -> None:
    release = bundle.open_bundle(kitted.report.bundle).manifest_digest
    for key, kit in kitted.kits.items():
        found = {(f.domain, f.release) for f in kit.manifest.flavours}
        static = key.endswith("static")
        assert found == {("toy_chirps", release) if static else (None, None)}
        assert kit.manifest.slots or static


def test_a_second_export_keeps_the_kit(kitted: Kitted, tmp_path: Path) -> None:
    shutil.copytree(kitted.folder, tmp_path / "dist")
    found = again(kitted, tmp_path / "dist", order("orin int8"), order("nano fp32"))
    assert [item.state for item in found.kits] == ["reused", "reused"]
    before = {kit.path.name: kit.digest for kit in kitted.kits.values()}
    assert all(before[item.kit.path.name] == item.kit.digest for item in found.kits)


def test_another_domain_shares_the_kit(fleet: Fleet, kitted: Kitted, tmp_path: Path) -> None:
    shutil.copytree(kitted.folder, tmp_path / "dist")
    other = fleet["digits"].domain
    found = export(
        other.recipe,
        checkpoint=other.checkpoint,
        dist=tmp_path / "dist",
        cache=kitted.exported.cache,
        orders=[order("nano fp32")],
    )
    assert [item.state for item in found.kits] == ["reused"]


def test_int8_ranges_are_kept_for_the_next_domain(kitted: Kitted) -> None:
    kit = kitted.kits["orin int8"]
    found = kept_ranges(kitted.folder, kit.backbone, "orin-nano-jp6.2", "int8")
    assert found == json.loads(kit.read("ranges.json"))
    assert min(found.values()) > 0
    assert kept_ranges(kitted.folder, kit.backbone, "orin-nano-jp6.2", "fp16") == {}


def test_recalibrating_only_widens(kitted: Kitted, tmp_path: Path) -> None:
    shutil.copytree(kitted.folder, tmp_path / "dist")
    kit = kitted.kits["orin int8"]
    found = again(kitted, tmp_path / "dist", replace(order("orin int8"), recalibrate=True))
    # The same pictures need nothing wider.
    assert found.kits[0].state == "reused"
    assert found.kits[0].kit.digest == kit.digest


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
    found = export(
        wide.recipe,
        checkpoint=wide.checkpoint,
        dist=dist,
        cache=kitted.exported.cache,
        orders=[order("nano fp32")],
        overwrite=True,
    )
    (item,) = found.kits
    assert item.state == "replaced"
    assert open_kit(item.kit.path).digest != kitted.kits["nano fp32"].digest


def test_a_precision_that_the_board_lacks(kitted: Kitted, tmp_path: Path) -> None:
    with pytest.raises(PrecisionError, match="Nano"):
        again(kitted, tmp_path, Order(find("nano-jp4.6"), "int8", ("swap",)))
    assert not list(tmp_path.glob("*.da3b"))


def test_boards_without_our_python_get_a_script(kitted: Kitted) -> None:
    for key, kit in kitted.kits.items():
        scripted = find(kit.manifest.target).release.scripted
        names = {entry.name for entry in kit.manifest.files}
        assert ("build.sh" in names) == scripted, key
    text = kitted.kits["nano fp32"].read("build.sh").decode()
    listed = {e.name: e.digest for e in kitted.kits["nano fp32"].manifest.files}
    assert f"{listed['swap.onnx'].removeprefix('sha256:')}  swap.onnx" in text

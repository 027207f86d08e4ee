"""From figures to manifests: rounded, complete, the same on two machines that agree."""

from __future__ import annotations

from tests.support.exported import Exported
from toolchain import bundle
from toolchain.bundle.limits import SLOWEST_PER_S
from toolchain.core.canonical import rounded
from toolchain.export.graph.names import DIALECT
from toolchain.export.manifests import TIME_LIMIT_S, time_limit_s


def test_the_backbones_manifest_tells_its_graph(exported: Exported) -> None:
    manifest = bundle.open_backbone(exported.backbone).manifest
    cuts = [(b.name, b.shape_in, b.shape_out, b.gateable) for b in manifest.blocks]
    assert cuts == [
        ("block00", (8, 12, 12), (8, 12, 12), True),
        ("block01", (8, 12, 12), (16, 6, 6), False),
        ("block02", (16, 6, 6), (16, 6, 6), True),
    ]
    assert all(block.flops > 0 for block in manifest.blocks)
    assert (manifest.opset, manifest.ir_version) == (
        DIALECT.opset,
        DIALECT.ir_version,
    )
    assert (manifest.input.size, manifest.input.channels) == (12, 3)
    assert manifest.licence == "Apache-2.0"  # what the toy's package says
    assert {tap.name for tap in manifest.taps} == {
        "in.block00",
        "block.block00",
        "block.block01",
        "block.block02",
        "features",
    }


def test_the_domains_manifest_carries_parity_and_metrics(exported: Exported) -> None:
    manifest, report = exported.report.manifest, exported.report.parity
    for c in report.comparisons:
        stem = f"{c.flavour}.batch{c.batch}"
        assert manifest.parity[f"{stem}.max_abs"] == rounded(c.max_absolute)
        assert manifest.parity[f"{stem}.top1_mismatches"] == 0
        assert manifest.parity[f"{stem}.gate_mismatches"] == 0
    assert manifest.parity["cases"] == report.cases
    assert manifest.metrics["head_accuracy"] == 0.5
    assert manifest.selftest.tolerance_relative == report.tolerance


def test_rates_stand_where_a_gate_is(exported: Exported) -> None:
    blocks = {
        b.name: (b.gateable, b.rate is not None) for b in exported.report.manifest.gates.blocks
    }
    assert blocks == {"block00": (True, True), "block01": (False, False), "block02": (True, True)}


def test_a_large_net_may_take_longer_over_its_self_test(exported: Exported) -> None:
    assert exported.report.manifest.selftest.time_limit_s == TIME_LIMIT_S
    assert time_limit_s(10**6, 16) == TIME_LIMIT_S
    assert time_limit_s(60 * 10**9, 16) == 60e9 * 16 / SLOWEST_PER_S

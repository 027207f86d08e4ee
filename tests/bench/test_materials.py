"""What is measured, as files: made, written down, found again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from tests.bench.conftest import SETUP
from tests.support.exported import Fleet
from toolchain import bundle
from toolchain.bench import domains
from toolchain.bench.materials import INDEX_NAME, Materials, foreign, from_json, read_index
from toolchain.core.errors import BundleError, DataError, UsageError
from toolchain.export.check.bundles import check_bundle


def test_materials_survive_json(materials: Materials) -> None:
    assert from_json(json.loads(json.dumps(materials.to_json()))) == materials


def test_every_file_is_there(materials: Materials) -> None:
    assert len(materials.bundles) == len(materials.shared) == SETUP.domains
    paths = (*materials.bundles, *materials.wholes, *materials.shared, *materials.statics.values())
    assert all(path.is_file() for path in paths)
    bundle.open_backbone(materials.backbone)


def test_domains_have_gates_in_both_states_and_golden_data(materials: Materials) -> None:
    manifest = materials.open(1).manifest
    assert len(manifest.classes) == SETUP.classes
    states = manifest.selftest.gate_states
    assert all(state.open and state.closed and state.forced for state in states.values())
    rates = [block.rate for block in manifest.gates.blocks if block.rate is not None]
    assert rates == [float(place % 2 == 0) for place in range(len(rates))]


def test_a_drawn_domain_is_a_real_one(materials: Materials) -> None:
    """`da3 check` links its graphs anew and runs every flavour over its golden data."""
    check = check_bundle(materials.bundles[1], threads=1)
    assert set(check.relinked) == {"static-if", "swap-if", "swap-rows"}
    assert check.report.passed


def test_what_is_there_is_not_made_again(materials: Materials) -> None:
    lines: list[str] = []
    assert domains.make(materials.bundles[0].parent, SETUP, notify=lines.append) == materials
    assert lines == []


def test_another_setup_is_not_served_with_these(materials: Materials) -> None:
    work, other = materials.bundles[0].parent, dataclasses.replace(SETUP, classes=8)
    assert read_index(work, SETUP.made()) == materials
    assert read_index(work, other.made()) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"backbone": 1}', "null"])
def test_a_damaged_index_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX_NAME).write_text(text)
    assert read_index(tmp_path, {}) is None


def test_foreign_bundles_find_their_backbone(materials: Materials) -> None:
    result = foreign(materials.bundles)
    assert result.backbone == materials.backbone
    assert result.wholes == result.shared == ()
    assert foreign(materials.bundles, materials.backbone).backbone == materials.backbone


def test_one_bundle_is_too_few(materials: Materials) -> None:
    with pytest.raises(UsageError, match="two bundles"):
        foreign(materials.bundles[:1])


def test_a_missing_backbone_is_named(materials: Materials, tmp_path: Path) -> None:
    copies = [Path(shutil.copy(path, tmp_path)) for path in materials.bundles[:2]]
    with pytest.raises(DataError, match=materials.backbone.name):
        foreign(copies)


def test_a_damaged_bundle_is_refused(materials: Materials, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.da3b"
    damaged.write_bytes(materials.bundles[0].read_bytes()[:-1])
    with pytest.raises(BundleError):
        foreign([damaged, materials.bundles[1]])


def test_a_bundle_that_changes_the_backbone_is_refused(fleet: Fleet) -> None:
    bundles = [fleet[name].bundle for name in ("masked", "tuned")]
    with pytest.raises(UsageError, match=r"changes it \(piggyback\)"):
        foreign(bundles)

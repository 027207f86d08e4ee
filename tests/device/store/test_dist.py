"""A folder of bundles: found by name, and their backbone beside them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.exported import Fleet
from toolchain.core.errors import BundleError, DataError, UnknownNameError
from toolchain.device.store import dist


def test_bundles_are_found_by_name_and_nothing_else_is(fleet: Fleet, tmp_path: Path) -> None:
    for name in ("b.da3b", "a.da3b", "Käfer.da3b", "c.zip", ".hidden.da3b"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.da3b").mkdir()
    assert list(dist.bundles(tmp_path)) == ["Käfer", "a", "b"]
    assert dist.find(tmp_path, "Ka\u0308fer") == tmp_path / "Käfer.da3b"


def test_a_name_that_is_a_path_reaches_no_other_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for place in ("secret.da3b", "in/a.da3b"):
        (tmp_path / place).write_bytes(b"")
    for name in ("../secret", str(tmp_path / "secret"), "", "a.da3b", "\0"):
        with pytest.raises(UnknownNameError):
            dist.find(tmp_path / "in", name)


def test_a_folder_without_bundles_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="da3 export --domain NAME"):
        dist.find(tmp_path, "cars")


def test_the_backbone_lies_beside_the_bundle_or_where_it_is_said(
    fleet: Fleet, artefact: Path, tmp_path: Path
) -> None:
    bundle = fleet["first"].bundle
    assert dist.backbone_of([bundle]) == artefact
    alone = Path(shutil.copy(bundle, tmp_path))
    for where in (artefact, artefact.parent):
        assert dist.backbone_of([alone], where) == artefact
    with pytest.raises(DataError, match="--backbone DIR"):
        dist.backbone_of([alone])


def test_a_damaged_bundle_does_not_hide_the_backbone_of_the_next(
    fleet: Fleet, artefact: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.da3b"
    damaged.write_bytes(b"no bundle")
    assert dist.backbone_of([damaged, fleet["first"].bundle]) == artefact
    with pytest.raises(BundleError):
        dist.backbone_of([damaged])

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
    (tmp_path / "a@head.da3b").write_bytes(b"")  # by another method than its recipe's
    for name in ("@head", "a@", "a@b@c", "a@b c"):
        (tmp_path / f"{name}.da3b").write_bytes(b"")
    assert list(dist.bundles(tmp_path)) == ["Käfer", "a", "a@head", "b"]
    (tmp_path / "gone.da3b").symlink_to(tmp_path / "nowhere.da3b")
    unusable = dist.unusable(tmp_path)
    assert [path.stem for path in unusable] == ["@head", "a@", "a@b c", "a@b@c", "folder", "gone"]
    assert not any(str(tmp_path) in str(fault) for fault in unusable.values())
    assert dist.find(tmp_path, "a@head") == tmp_path / "a@head.da3b"
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
    assert dist.survey([bundle]).backbone() == artefact
    alone = Path(shutil.copy(bundle, tmp_path))
    for where in (artefact, artefact.parent):
        assert dist.survey([alone]).backbone(where) == artefact
    with pytest.raises(DataError, match="--backbone DIR"):
        dist.survey([alone]).backbone()


def test_a_damaged_bundle_does_not_hide_the_backbone_of_the_next(
    fleet: Fleet, artefact: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.da3b"
    damaged.write_bytes(b"no bundle")
    assert dist.survey([damaged, fleet["first"].bundle]).backbone() == artefact
    with pytest.raises(BundleError):
        dist.survey([damaged]).backbone()


def test_the_backbone_is_the_one_that_most_bundles_need(
    fleet: Fleet, artefact: Path, tmp_path: Path
) -> None:
    """One bundle of another backbone, sorted first, takes the others off no more."""
    paths = [fleet[name].bundle for name in ("foreign", "first", "digits")]
    assert dist.survey(paths).backbone() == artefact
    alone = [Path(shutil.copy(path, tmp_path / f"{path.stem}.da3b")) for path in paths]
    shutil.copytree(fleet["foreign"].backbone, tmp_path / fleet["foreign"].backbone.name)
    other = dist.survey(alone).backbone()
    assert other.name == fleet["foreign"].backbone.name, "the only one that is there"


def test_bundles_that_share_come_first_and_those_that_change_the_backbone_last(
    fleet: Fleet, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.da3b"
    damaged.write_bytes(b"no bundle")
    names = ("tuned", "head", "masked", "first", "wide", "digits", "grey")
    survey = dist.survey([damaged, *(fleet[name].bundle for name in names)])
    assert list(survey.refused) == [damaged]
    placed = [path.stem.removeprefix("toy_") for path in survey.in_order()]
    assert placed[:3] == ["chirps", "digits", "grey"]
    assert sorted(placed[3:5]) == ["head", "wide"]
    assert sorted(placed[5:]) == ["masked", "tuned"]

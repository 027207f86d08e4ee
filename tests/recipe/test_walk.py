"""A folder is read within limits: what is a picture, in which order, and where links lead."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.image_folders import classes, touch
from toolchain.core.errors import DataError
from toolchain.recipe import walk
from toolchain.recipe.walk import Walk


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".JPEG", ".pjpeg", ".dib", ".pbm"])
def test_suffixes_that_mean_a_picture(suffix: str, tmp_path: Path) -> None:
    assert len(Walk(classes(tmp_path, "cat", "dog", suffix=suffix)).read().pictures) == 4


def test_the_tree_is_in_the_order_of_names(tmp_path: Path) -> None:
    touch(tmp_path, "b/1.jpg", "a/2.jpg", "b/0.jpg", "c.jpg", "a/x/0.jpg")
    tree = Walk(tmp_path).read()
    assert list(tree.folders) == ["a", "b"]
    assert [path.name for path in tree.own] == ["c.jpg"]
    inside = [path.relative_to(tmp_path).as_posix() for path in tree.pictures]
    assert inside == ["a/2.jpg", "a/x/0.jpg", "b/0.jpg", "b/1.jpg", "c.jpg"]
    assert tree.of_classes()
    assert not tree.folders["b"].of_classes()


def test_links_that_wind_around_each_other_end(tmp_path: Path) -> None:
    classes(tmp_path, "cat", "dog")
    (tmp_path / "cat" / "x").symlink_to(tmp_path / "dog")
    (tmp_path / "dog" / "y").symlink_to(tmp_path / "cat")
    reading = Walk(tmp_path)
    assert len(reading.read().pictures) == 8
    up = "folders nest too deeply: the link leads back up"
    assert [(fault.path, fault.message) for fault in reading.faults] == [
        ("cat/x/y", up),
        ("dog/y/x", up),
    ]


def test_entries_and_kinds_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes(tmp_path, "cat", "dog")
    touch(tmp_path, *(f"cat/x.{i}" for i in range(20)))
    monkeypatch.setattr(walk, "MAX_KINDS", 5)
    reading = Walk(tmp_path)
    reading.read()
    assert sum(kind.count for kind in reading.left_out()) == 20
    assert len(reading.left_out()) == 6
    monkeypatch.setattr(walk, "MAX_ENTRIES", 10)
    with pytest.raises(DataError, match="at most 10 files and folders"):
        Walk(tmp_path).read()

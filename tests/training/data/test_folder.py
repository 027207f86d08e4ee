"""Image folders: what is listed, what is refused, and what the message says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toolchain import recipe
from toolchain.core.errors import DataError
from toolchain.recipe import Recipe, listing, walk
from toolchain.recipe.library import packaged
from toolchain.training import data


def flowers(**options: object) -> Recipe:
    base = recipe.load(packaged() / "flowers.yaml")
    spec = dataclasses.replace(base.data, **options)  # type: ignore[arg-type]
    square = dataclasses.replace(base.preprocess, size=16, resize=16)
    return dataclasses.replace(base, data=spec, preprocess=square)


def write(path: Path, colour: int = 9) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 18), (colour, colour, colour)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for part, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("aster", "rose", "tulip")):
            for i in range(count):
                write(tmp_path / "set" / part / name / f"{i}.png", 50 * label + i)
    return tmp_path / "set"


def test_parts_classes_and_pictures(root: Path) -> None:
    dataset = data.load(flowers(), root=root)
    assert dataset.classes == ("aster", "rose", "tulip")
    assert (len(dataset.train), len(dataset.test)) == (12, 6)
    shown, labels = dataset.test.batch([0, 3, 5])
    assert labels.tolist() == [0, 1, 2]
    assert shown[:, 0, 0, 0].tolist() == [0, 51, 101]


@pytest.mark.parametrize("name", (*listing.TEST_NAMES, *listing.VALIDATION_NAMES))
def test_the_test_part_has_several_names(root: Path, name: str) -> None:
    (root / "test").rename(root / name)
    assert len(data.load(flowers(), root=root).test) == 6


def test_a_validation_part_beside_the_test_is_a_split_of_its_own(root: Path) -> None:
    assert data.load(flowers(), root=root).validation is None
    write(root / "val" / "rose" / "v.png", 200)
    dataset = data.load(flowers(), root=root)
    assert (len(dataset.train), len(dataset.test)) == (12, 6)
    assert dataset.validation is not None
    shown, labels = dataset.validation.batch([0])
    assert (labels.tolist(), shown[0, 0, 0, 0]) == ([1], 200)


def test_limits_are_spread_over_the_classes(root: Path) -> None:
    dataset = data.load(flowers(train=6, test=3), root=root)
    assert np.bincount(dataset.train.labels).tolist() == [2, 2, 2]
    assert np.bincount(dataset.test.labels).tolist() == [1, 1, 1]


def test_other_files_and_hidden_folders_are_passed_over(root: Path) -> None:
    (root / "train" / "notes.txt").write_text("x", encoding="utf-8")
    (root / "train" / "rose" / "notes.txt").write_text("x", encoding="utf-8")
    write(root / "train" / ".thumbs" / "0.png")
    write(root / "train" / "rose" / "more" / "9.PNG")
    assert len(data.load(flowers(), root=root).train) == 13


def test_a_missing_folder_shows_the_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        data.load(flowers(), root=tmp_path / "none")
    assert f"{tmp_path / 'none'}: no such folder" in str(caught.value)
    assert "├── train/" in str(caught.value)


def test_train_without_test_shows_the_layout(root: Path) -> None:
    (root / "test").rename(root / "exam")
    with pytest.raises(DataError, match=r"(?s)expected test/ beside train/.*├── train/"):
        data.load(flowers(), root=root)


def test_a_class_that_was_never_trained_is_named(root: Path) -> None:
    write(root / "test" / "lily" / "0.png")
    with pytest.raises(DataError, match="'lily'"):
        data.load(flowers(), root=root)


def test_a_class_without_test_pictures_is_fine_but_no_test_at_all_is_not(root: Path) -> None:
    for path in (root / "test" / "rose").iterdir():
        path.unlink()
    assert len(data.load(flowers(), root=root).test) == 4
    for path in root.glob("test/*/*"):
        path.unlink()
    with pytest.raises(DataError, match="expected pictures, got none"):
        data.load(flowers(), root=root)


def test_a_link_out_of_the_folder_is_refused(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "private.png")
    (root / "train" / "rose" / "9.png").symlink_to(tmp_path / "private.png")
    with pytest.raises(DataError, match="links out"):
        data.load(flowers(), root=root)


def test_a_class_that_is_a_link_out_of_the_folder_is_refused(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "private" / "0.png")
    (root / "train" / "lily").symlink_to(tmp_path / "private")
    with pytest.raises(DataError, match="links out"):
        data.load(flowers(), root=root)


def test_a_link_back_up_ends(root: Path) -> None:
    (root / "train" / "rose" / "again").symlink_to(root / "train" / "rose")
    with pytest.raises(DataError, match="nest too deeply"):
        data.load(flowers(), root=root)


def test_folders_that_nest_for_ever_are_refused(root: Path) -> None:
    write(root / "train" / "rose" / "a" / "b" / "c" / "d" / "e" / "0.png")
    with pytest.raises(DataError, match="nest too deeply"):
        data.load(flowers(), root=root)


def test_two_folders_of_one_name_are_refused(root: Path) -> None:
    for name in ("caf\u00e9", "cafe\u0301"):
        write(root / "train" / name / "0.png")
    with pytest.raises(DataError, match="two folders"):
        data.load(flowers(), root=root)


@pytest.mark.parametrize("name", ["a\tb", "a\u202eb", "x" * 201])
def test_a_class_name_that_cannot_be_shown_is_refused(root: Path, name: str) -> None:
    (root / "train" / name).mkdir()
    with pytest.raises(DataError, match="printable"):
        data.load(flowers(), root=root)


def test_counts_are_limited(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "MAX_PICTURES", 5)
    with pytest.raises(DataError, match="at most"):
        data.load(flowers(), root=root)


def test_one_picture_a_class_leaves_nothing_to_test_with(tmp_path: Path) -> None:
    for name in ("aster", "rose"):
        write(tmp_path / name / "0.png")
    with pytest.raises(DataError, match="at least 2 pictures per class, or a test folder"):
        data.load(flowers(), root=tmp_path)


def test_all_damaged_pictures_of_both_parts_are_told_by_the_first_that_is_met(root: Path) -> None:
    dataset = data.load(flowers(), root=root)
    for name in ("train/rose/1.png", "train/tulip/3.png", "test/aster/0.png"):
        (root / name).write_bytes(b"no picture")
    dataset.train.batch([0])
    with pytest.raises(DataError, match="3 faults") as caught:
        dataset.train.batch(range(len(dataset.train)))
    assert [fault.path for fault in caught.value.faults] == [
        "train/rose/1.png",
        "train/tulip/3.png",
        "test/aster/0.png",
    ]


def test_what_both_parts_keep_decoded_is_bounded_together(root: Path) -> None:
    dataset = data.load(flowers(), root=root)
    picture = 16 * 16 * 3
    assert dataset.train.store is dataset.test.store  # type: ignore[attr-defined]
    assert 18 * picture <= dataset.held_bytes < 18 * (picture + 400)
    for split in (dataset.train, dataset.test):
        first, _ = split.batch(range(len(split)))
        again, _ = split.batch(range(len(split)))
        assert np.array_equal(first, again)


def test_the_notes_say_what_is_left_out(root: Path) -> None:
    (root / "train" / "rose" / "notes.txt").write_text("x", encoding="utf-8")
    notes = data.load(flowers(), root=root).notes
    assert notes[0] == "12 to train, 6 to test (as the folders say), 3 classes"
    assert "left out: 1 files of other kinds (.txt): train/rose/notes.txt" in notes
    assert notes[-1] == "at most 0.0 MiB of them and their names are kept in memory"

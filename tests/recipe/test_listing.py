"""Folders as people have them: what is a class, what is a part, what is left out, and why."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.image_folders import classes, touch
from tests.support.permissions import locked
from toolchain.core.errors import DataError, StorageError
from toolchain.recipe.listing import Listing, scan


def left(listing: Listing) -> dict[str, int]:
    return {entry.reason: entry.count for entry in listing.left_out}


@pytest.mark.parametrize("name", ["__background__", "__x", "_", "train", "test", "Val"])
def test_any_name_is_a_class_where_it_holds_pictures(name: str, tmp_path: Path) -> None:
    listing = scan(classes(tmp_path, name, "cat", "dog"))
    assert listing.classes == tuple(sorted([name, "cat", "dog"]))
    assert not listing.was_split
    assert listing.left_out == ()


@pytest.mark.parametrize(
    "train", ["train", "TRAIN", "Training", "train_set", "trainset", "seg_train"]
)
@pytest.mark.parametrize("test", ["Test", "testing", "val", "Valid", "dev", "Test Set", "seg_test"])
def test_parts_are_known_by_several_names(train: str, test: str, tmp_path: Path) -> None:
    classes(tmp_path / train, "cat", "dog", count=3)
    classes(tmp_path / test, "cat", "dog", count=1)
    listing = scan(tmp_path)
    assert (listing.classes, len(listing.train), len(listing.test)) == (("cat", "dog"), 6, 2)
    assert listing.was_split
    assert f"{test}/ is the part test" in listing.notes


def test_val_beside_test_is_a_part_of_its_own(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 2), ("test", 1)):
        classes(tmp_path / part, "cat", "dog", count=count)
    listing = scan(tmp_path)
    assert [len(p) for p in (listing.train, listing.validation, listing.test)] == [6, 4, 2]
    assert "val/ is the part validation" in listing.notes
    assert "6 to train, 4 to validate, 2 to test" in listing.lines()[0]


@pytest.mark.parametrize(
    ("folders", "what"),
    [
        (("train/cat", "Train/dog", "test/cat"), "one folder for the part train, got Train/"),
        (("train/cat", "val/cat", "valid/cat"), "one folder for the part validation"),
        (("val/cat", "test/cat"), "expected train/ beside test/"),
        (("train", "test"), "expected class folders, got 2 pictures without a class"),
        (("train/cat", "exam/cat"), "expected test/ beside train/"),
        (("train/cat", "test/cat", "test/dog", "test/cow"), "got 'cow', 'dog' besides"),
    ],
)
def test_what_can_mean_two_things_is_refused(
    folders: tuple[str, ...], what: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=what):
        scan(classes(tmp_path, *folders))


def test_one_folder_around_the_classes_is_named(tmp_path: Path) -> None:
    classes(tmp_path / "pets", "cat", "dog")
    with pytest.raises(DataError) as caught:
        scan(tmp_path)
    assert caught.value.fix == f"name {tmp_path / 'pets'} as the folder of the pictures"


def test_everything_that_is_left_out_is_counted_with_its_reason(tmp_path: Path) -> None:
    classes(tmp_path, "cat", "dog")
    classes(tmp_path, "bird", suffix=".heic", count=3)
    touch(tmp_path, "labels.csv", "README", "stray.png", ".DS_Store", "cat/Thumbs.db")
    touch(tmp_path, "cat/._0.jpg", "cat/@eaDir/0.jpg/THUMB_M.jpg", "__MACOSX/cat/._0.jpg")
    touch(tmp_path, "$RECYCLE.BIN/x.jpg", "System Volume Information/x.jpg", "dog/b.AVIF")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "fish").mkdir()
    os.mkfifo(tmp_path / "dog" / "pipe.jpg")
    listing = scan(tmp_path)
    assert listing.classes == ("cat", "dog")
    assert len(listing.pictures) == 4
    computers = "folders that a computer makes, not entered"
    assert left(listing) == {
        "hidden: the name begins with a dot": 2,
        f"{computers} (Windows' bin)": 1,
        f"{computers} (Windows' own files)": 1,
        f"{computers} (macOS's own files in an archive)": 1,
        f"{computers} (the finds of a disk check)": 1,
        f"{computers} (thumbnails of a NAS)": 1,
        "files of other kinds (no suffix)": 1,
        "files of other kinds (.csv)": 1,
        "files of other kinds (.db)": 1,
        "pictures of a format that is not read (HEIC)": 3,
        "pictures of a format that is not read (AVIF)": 1,
        "pictures in no class folder": 1,
        "folders without a picture that is read": 2,
        "neither files nor folders": 1,
    }
    heic = next(entry for entry in listing.left_out if "HEIC" in entry.reason)
    assert heic.paths == ("bird/0.heic", "bird/1.heic", "bird/2.heic")
    assert "magick" in heic.fix
    assert len(listing.lines()) == 1 + len(listing.notes) + len(listing.left_out)


def test_everything_beside_the_parts_is_counted(tmp_path: Path) -> None:
    classes(tmp_path, "train/cat", "train/dog", "test/cat", "test/dog", "extra/cat")
    touch(tmp_path, "train/stray.jpg", "stray.jpg")
    (tmp_path / "test" / "bird").mkdir()
    listing = scan(tmp_path)
    assert left(listing) == {
        "folders beside the parts, which are no part": 1,
        "pictures in no class folder": 2,
        "folders without a picture that is read": 1,
    }


def test_pictures_in_folders_inside_a_class_are_noted(tmp_path: Path) -> None:
    listing = scan(touch(classes(tmp_path, "cat", "dog"), "cat/more/9.jpg"))
    assert len(listing.pictures) == 5
    assert "1 pictures lie in folders inside their class folder, such as cat/more" in listing.notes


def test_a_class_that_nothing_tests_is_noted(tmp_path: Path) -> None:
    listing = scan(classes(classes(tmp_path, "cat", count=1), "dog", count=6))
    assert "1 of 2 classes have no picture to test: cat" in listing.notes


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    root = classes(tmp_path / "set", "cat", "dog")
    touch(tmp_path, "private.jpg")
    for name in ("a.jpg", "b.jpg"):
        (root / "cat" / name).symlink_to(tmp_path / "private.jpg")
    (root / "cat" / "gone.jpg").symlink_to(root / "none.jpg")
    (root / "cat" / "itself.jpg").symlink_to("itself.jpg")
    (root / "dog" / "again").symlink_to(root / "dog")
    touch(root, "bad\tname/0.jpg")
    with pytest.raises(DataError, match="6 faults") as caught:
        scan(root)
    assert [(fault.path, fault.message) for fault in caught.value.faults] == [
        ("cat/a.jpg", "links out of the data folder"),
        ("cat/b.jpg", "links out of the data folder"),
        ("cat/gone.jpg", "the link leads nowhere"),
        ("cat/itself.jpg", "the link leads nowhere"),
        ("dog/again", "folders nest too deeply: the link leads back up"),
        (
            "bad\tname",
            "expected a class name of 1 to 200 printable characters, got 'bad\\tname'",
        ),
    ]


def test_folders_that_may_not_be_entered_are_named(tmp_path: Path) -> None:
    classes(tmp_path, "bird", "cat", "dog")
    with locked(tmp_path / "cat"), pytest.raises(DataError) as caught:
        scan(tmp_path)
    assert [(fault.path, fault.message) for fault in caught.value.faults] == [
        ("cat", "cannot be listed: Permission denied")
    ]
    with locked(tmp_path), pytest.raises(StorageError, match="Permission denied"):
        scan(tmp_path)
    with locked(tmp_path), pytest.raises(StorageError, match="Permission denied"):
        scan(tmp_path / "cat")

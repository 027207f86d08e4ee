"""What lies behind a listing: too few pictures are refused with a fix that works."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from toolchain.core.errors import DataError
from toolchain.recipe.examined import examine
from toolchain.recipe.listing import look, scan


def pictures(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.new("RGB", (4, 4)).save(folder / f"{index}.png")


def test_one_picture_for_each_class_asks_for_more_pictures_not_for_folders(tmp_path: Path) -> None:
    pictures(tmp_path / "cat", 1)
    pictures(tmp_path / "dog", 1)
    with pytest.raises(DataError, match="got 2 classes, 2 and 0") as caught:
        examine(scan(tmp_path))
    assert caught.value.fix.startswith("put at least 2 pictures into a class folder")
    pictures(tmp_path / "dog", 2)
    assert len(examine(scan(tmp_path)).listing.pictures) == 3


def test_strange_classes_and_damaged_pictures_come_in_one_answer(tmp_path: Path) -> None:
    for place in ("train/cat", "train/dog", "test/cat", "test/dog", "test/cow"):
        pictures(tmp_path / place, 2)
    for place in ("train/dog/0.png", "test/cow/1.png"):
        (tmp_path / place).write_bytes(b"no picture")
    (tmp_path / "train" / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match="4 faults") as caught:
        examine(look(tmp_path))
    assert [fault.path for fault in caught.value.faults] == [
        "train/cat/gone.png",
        "test",
        "train/dog/0.png",
        "test/cow/1.png",
    ]
    assert "add pictures of them to" in caught.value.fix
    assert "replace or remove these files" in caught.value.fix


def test_one_class_asks_for_the_layout(tmp_path: Path) -> None:
    pictures(tmp_path / "cat", 5)
    with pytest.raises(DataError, match="got 1 classes") as caught:
        examine(scan(tmp_path))
    assert caught.value.fix.startswith("expected layout:")

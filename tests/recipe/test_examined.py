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


def test_animations_are_counted_and_told(tmp_path: Path) -> None:
    """Of an animation the first picture is used, and nobody has to find that out by himself."""
    for place in ("cat", "dog"):
        pictures(tmp_path / place, 5)
    plain = examine(scan(tmp_path))
    assert plain.document()["several"] == {"count": 0, "paths": ()}
    assert not any("several pictures" in line for line in plain.lines())
    frames = [Image.new("RGB", (4, 4), (at, 0, 0)) for at in (0, 90, 180)]
    names = [f"cat/{kind}.{kind}" for kind in ("gif", "png", "tif", "webp")]
    for name in names:
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    examined = examine(scan(tmp_path))
    several = examined.document()["several"]
    assert several["count"] == 4
    assert sorted(several["paths"]) == names
    (line,) = (line for line in examined.lines() if "several pictures" in line)
    assert line.startswith(
        "4 files hold several pictures (an animation, pages), of which the first"
    )

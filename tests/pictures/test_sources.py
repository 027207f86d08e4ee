"""Sources of pictures: folders, files and cameras that cannot be used as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.support.drawn import pixels
from tests.support.permissions import locked
from toolchain.core.errors import DataError, StorageError
from toolchain.pictures.sources import is_endless, shots

COUNT = 5


def picture(path: Path) -> Path:
    Image.fromarray(pixels(1)[0]).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of ``COUNT`` pictures, two of them in a folder inside."""
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "b.png", "c.png", "sub/a.png", "sub/b.png"):
        picture(tmp_path / name)
    return tmp_path


def test_folders_nested_without_end_are_refused(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*"abcdefghijklmnopqrstuvw")
    deep.mkdir(parents=True)
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="nest too deeply"):
        next(shots(tmp_path, 1))


def test_more_pictures_than_a_list_may_hold_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolchain.pictures.sources.MAX_PICTURES", COUNT - 1)
    with pytest.raises(DataError, match=f"at most {COUNT - 1} pictures"):
        next(shots(folder, 1))


def test_a_folder_that_may_not_be_listed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with locked(tmp_path / "a"), pytest.raises(DataError, match="cannot be listed"):
        next(shots(tmp_path, 1))


def test_an_empty_folder_and_a_missing_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected pictures"):
        next(shots(tmp_path, 1))
    with pytest.raises(DataError, match="no such picture, folder or video"):
        next(shots(tmp_path / "missing", 1))


def test_no_such_camera_is_told_by_its_name() -> None:
    for source in (9999, "camera:9999"):
        assert is_endless(source)
        with pytest.raises(DataError, match="camera:9999"):
            next(shots(source, 1))


def test_folders_that_a_computer_makes_are_not_entered_and_heic_is_a_fault(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.jpg")
    for name in ("@eaDir", "__MACOSX", "$RECYCLE.BIN"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / name / "a.jpg")
    (tmp_path / "b.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(30))
    taken = [Path(shot.source).name for shot in shots(tmp_path, 1)]
    assert taken == ["a.jpg", "b.heic"]


def test_a_source_behind_a_locked_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with locked(tmp_path), pytest.raises(StorageError, match="Permission denied"):
        next(shots(tmp_path / "in", 1))


def test_a_link_that_leads_back_to_itself_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to("loop.png")
    with pytest.raises(DataError, match=r"loop\.png: no such picture"):
        next(shots(tmp_path / "loop.png", 1))

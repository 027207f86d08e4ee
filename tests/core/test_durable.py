"""The single steps of which a store is made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.permissions import locked
from toolchain.core import durable
from toolchain.core.errors import StorageError


def test_an_append_cuts_off_what_stood_behind(tmp_path: Path) -> None:
    path = tmp_path / "log"
    durable.append(path, b"one", start=0)
    durable.append(path, b"two", start=3)
    durable.append(path, b"2", start=3)
    assert path.read_bytes() == b"one2"
    with pytest.raises(StorageError, match="expected at least 5 bytes, got 4"):
        durable.append(path, b"x", start=5)
    assert path.read_bytes() == b"one2"


def test_an_append_goes_through_no_link_and_into_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "own").write_bytes(b"mine")
    (tmp_path / "link").symlink_to("own")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(StorageError):
            durable.append(tmp_path / name, b"x", start=0)
    assert (tmp_path / "own").read_bytes() == b"mine"


def test_a_link_is_exchanged_and_nothing_is_left(tmp_path: Path) -> None:
    for target in ("gen/1", "gen/2"):
        durable.point(tmp_path / "current", target)
        assert str((tmp_path / "current").readlink()) == target
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError):
        durable.point(tmp_path / "folder", "gen/3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "folder"]


def test_a_copy_has_a_limit(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * 3_000_000)
    durable.copy(tmp_path / "source", tmp_path / "whole", limit_bytes=3_000_000)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "source").read_bytes()
    with pytest.raises(StorageError, match="expected at most 2999999 bytes"):
        durable.copy(tmp_path / "source", tmp_path / "more", limit_bytes=2_999_999)


def test_removing_takes_files_links_and_folders_and_follows_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to("kept")
    (tmp_path / "file").write_bytes(b"")
    for name in ("folder", "link", "file", "nothing"):
        durable.discard(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_what_the_file_system_refuses_is_an_error_of_ours(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    (folder / "file").write_bytes(b"")
    with locked(folder, 0o555):
        with pytest.raises(StorageError, match="Permission denied"):
            durable.append(folder / "log", b"x", start=0)
        with pytest.raises(StorageError, match="Permission denied"):
            durable.point(folder / "current", "gen/1")
        with pytest.raises(StorageError, match="Permission denied"):
            durable.discard(folder / "file")
    with pytest.raises(StorageError):
        durable.sync_folder(folder / "nothing")

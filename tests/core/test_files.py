"""toolchain/core/files.py: whole or not at all, durable, and nothing left behind."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.permissions import locked
from toolchain.core import files
from toolchain.core.errors import ExistsError, StorageError
from toolchain.core.files import atomic_directory, read_limited, stays_below, write_atomic


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("name", ["a", "a/b.png", "./a", "a..b/c", "...", "Möwe 1.jpg"])
def test_paths_that_stay_below(name: str) -> None:
    assert stays_below(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/", "/a", "//a", "a/../b", "a/..", "c:a", "a\\b", "..\\b", "a\0b"]
)
def test_paths_that_may_lead_out(name: str) -> None:
    assert not stays_below(name)


# write_atomic


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"hello")
    assert read_limited(tmp_path / "a", limit_bytes=5, what="note") == b"hello"
    assert names(tmp_path) == ["a"]


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"old")
    with pytest.raises(ExistsError, match="overwriting"):
        write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_overwriting_replaces_the_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"old")
    write_atomic(tmp_path / "a", b"new", overwrite=True)
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


def test_a_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(ExistsError):
        write_atomic(tmp_path / "link", b"x")
    assert names(tmp_path) == ["link"]


def test_the_mode_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a", b"x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no does not exist(.|\n)*mkdir -p"):
        write_atomic(tmp_path / "no" / "a", b"x")


def test_a_directory_is_not_overwritten_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(StorageError, match="cannot write"):
        write_atomic(tmp_path / "a", b"x", overwrite=True)
    assert names(tmp_path) == ["a"]


def test_one_of_many_writers_wins(tmp_path: Path) -> None:
    """Law: of writers that may not overwrite, exactly one succeeds, whatever their timing."""
    lost: list[int] = []
    start = threading.Barrier(8)

    def write(number: int) -> None:
        start.wait()
        try:
            write_atomic(tmp_path / "a", bytes([number]) * 1000)
        except ExistsError:
            lost.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lost) == 7
    winner = ({*range(8)} - {*lost}).pop()
    assert (tmp_path / "a").read_bytes() == bytes([winner]) * 1000
    assert names(tmp_path) == ["a"]


LIMITED = """
import resource, sys
from toolchain.core.errors import StorageError
from toolchain.core.files import atomic_directory, write_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
path = sys.argv[1]
try:
    if sys.argv[2] == "file":
        write_atomic(path, bytes(100_000))
    else:
        with atomic_directory(path) as partial:
            (partial / "small").write_bytes(b"x")
            (partial / "large").write_bytes(bytes(100_000))
except StorageError as err:
    print(err.message, err.fix)
    sys.exit(err.exit_code)
"""


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_file_system_that_refuses_leaves_nothing(tmp_path: Path, kind: str) -> None:
    """A real limit of the kernel stands in for the full disk: the write fails half way."""
    target = str(tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, target, kind], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert target in done.stdout
    assert kind == "directory" or "100000 bytes needed" in done.stdout
    # The disk has room: to free some would change nothing.
    assert "ulimit -f" in done.stdout
    assert "free" not in done.stdout
    assert names(tmp_path) == []


def test_a_full_device_is_a_storage_error() -> None:
    with pytest.raises(OSError, match="space") as caught:
        Path("/dev/full").write_bytes(b"x")
    error = files._refused("write", Path("/tmp/x"), caught.value, needed_bytes=1)
    assert type(error) is StorageError
    assert "1 bytes needed" in error.message
    assert "bytes free" in error.message
    assert error.fix == "free some space or choose another disk"


def test_a_quota_is_no_full_disk() -> None:
    err = OSError(errno.EDQUOT, "Disk quota exceeded", "/tmp/x")
    error = files.refused(err)
    assert "bytes free" not in error.message
    assert error.fix.startswith("remove files of your own there")


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Note every fsync with its path, and every name that appears, in order."""
    events: list[tuple[str, str]] = []
    fsync, link, rename = os.fsync, os.link, Path.rename

    def noting_fsync(handle: int) -> None:
        events.append(("fsync", Path(f"/proc/self/fd/{handle}").readlink().name))
        fsync(handle)

    def noting_link(source: Path, target: Path, **options: bool) -> None:
        link(source, target, **options)
        events.append(("name", target.name))

    def noting_rename(source: Path, target: Path) -> Path:
        events.append(("name", target.name))
        return rename(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "link", noting_link)
    monkeypatch.setattr(Path, "rename", noting_rename)
    return events


def test_bytes_are_durable_before_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: fsync of the file, then its name, then fsync of the directory."""
    events = recorded(monkeypatch)
    write_atomic(tmp_path / "a", b"x")
    assert [kind for kind, _ in events] == ["fsync", "name", "fsync"]
    assert events[0][1].endswith(".partial")
    assert events[1:] == [("name", "a"), ("fsync", tmp_path.name)]


def test_a_tree_is_durable_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: every file and directory below is fsynced before the name, the parent after it."""
    events = recorded(monkeypatch)
    with atomic_directory(tmp_path / "d") as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "a").write_bytes(b"x")
    before, after = events[: events.index(("name", "d"))], events[events.index(("name", "d")) :]
    assert [name for _, name in before][:2] == ["a", "sub"]
    assert before[-1][1].endswith(".partial")
    assert after == [("name", "d"), ("fsync", tmp_path.name)]


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    write_atomic(tmp_path / "a", b"x")
    with pytest.raises(ExistsError):
        write_atomic(tmp_path / "a", b"y")
    assert (tmp_path / "a").read_bytes() == b"x"
    assert names(tmp_path) == ["a"]


# atomic_directory


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "d") as partial:
        (partial / "a").write_bytes(b"x")
        assert not (tmp_path / "d").exists()
    assert names(tmp_path) == ["d"]
    assert names(tmp_path / "d") == ["a"]


def test_a_failure_removes_everything(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_directory(tmp_path / "d") as partial:
        (partial / "a").write_bytes(b"x")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_an_error_of_the_system_inside_is_wrapped(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write"), atomic_directory(tmp_path / "d") as p:
        (p / "no" / "a").write_bytes(b"x")
    assert names(tmp_path) == []


def test_an_existing_directory_is_kept(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(ExistsError), atomic_directory(tmp_path / "d"):
        pytest.fail("the block must not run")
    assert names(tmp_path) == ["d"]


def test_a_directory_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ExistsError), atomic_directory(tmp_path / "d") as partial:
        (partial / "a").write_bytes(b"mine")
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "a").write_bytes(b"theirs")
    assert (tmp_path / "d" / "a").read_bytes() == b"theirs"
    assert names(tmp_path) == ["d"]


@pytest.mark.parametrize("fails", [False, True])
def test_overwriting_a_directory(tmp_path: Path, fails: bool) -> None:
    """Law: with overwrite the old directory is replaced on success and untouched on failure."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").write_bytes(b"x")
    try:
        with atomic_directory(tmp_path / "d", overwrite=True) as partial:
            (partial / "new").write_bytes(b"y")
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    assert names(tmp_path / "d") == (["old"] if fails else ["new"])
    assert names(tmp_path) == ["d"]


def test_a_file_is_not_overwritten_by_a_directory(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(b"x")
    with pytest.raises(StorageError), atomic_directory(tmp_path / "d", overwrite=True):
        pass
    assert (tmp_path / "d").read_bytes() == b"x"
    assert names(tmp_path) == ["d"]


# read_limited


def test_reading_is_limited(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(10))
    with pytest.raises(StorageError, match=r"recipe .*at most 9 bytes, got 10"):
        read_limited(tmp_path / "a", limit_bytes=9, what="recipe")


def test_an_empty_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    assert read_limited(tmp_path / "a", limit_bytes=0, what="recipe") == b""


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    for path, says in (
        (tmp_path, "got a directory"),
        (tmp_path / "pipe", "a device or a pipe"),
        (Path("/dev/zero"), "a device or a pipe"),
        (tmp_path / "link", "No such file"),
        (tmp_path / "loop", "symbolic links"),
        (tmp_path / "missing", "No such file"),
        (tmp_path / "no" / "missing", "No such file or directory"),
    ):
        with pytest.raises(StorageError, match=says):
            read_limited(path, limit_bytes=10, what="recipe")


def test_a_file_that_is_longer_than_it_says_is_refused() -> None:
    """Files of /proc report no size and hold bytes: what a growing file looks like."""
    with pytest.raises(StorageError, match="changed while it was read"):
        read_limited("/proc/self/status", limit_bytes=10**6, what="recipe")


# what lies at a path


def test_a_path_is_a_folder_a_file_something_else_or_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to(tmp_path / "none")
    rows = [
        (files.exists(path), files.is_folder(path), files.is_file(path))
        for path in (tmp_path, *(tmp_path / n for n in ("file", "pipe", "gone", "file/x")))
    ]
    assert rows == [
        (True, True, False),
        (True, False, True),
        (True, False, False),
        (False, False, False),
        (False, False, False),
    ]
    assert files.names(tmp_path) == ["file", "gone", "pipe"]
    assert files.names(tmp_path / "none") == []


def test_what_lies_behind_a_locked_folder_is_an_error_not_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with locked(tmp_path):
        for ask in (files.exists, files.is_folder, files.is_file, files.names):
            with pytest.raises(StorageError, match="Permission denied") as caught:
                ask(tmp_path / "in")
            assert caught.value.fix == "check the path and its permissions"


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_cannot_be_one_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        files.is_file(tmp_path / name)

"""Locks: one holder at a time, named to the others, and none left by a process that died."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from toolchain.core.errors import LockedError, StorageError
from toolchain.core.lock import locked

HOLDS = """
import sys
from pathlib import Path
from toolchain.core.lock import locked
with locked(Path(sys.argv[1]), what="it"):
    print("locked", flush=True)
    sys.stdin.read()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """Return a process that holds the lock until its stdin ends."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "locked\n"
    return child


def test_a_second_one_is_told_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with (
        locked(path, what="the cars"),
        pytest.raises(LockedError) as caught,
        locked(path, what="the cars"),
    ):
        pytest.fail("two at once")
    assert f"alone at the cars, got another one at work there: process {os.getpid()} on " in (
        caught.value.message
    )
    assert not path.exists()
    with locked(path, what="the cars"):
        pass


def test_a_process_that_was_killed_locks_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path) as child:
        with pytest.raises(LockedError, match=f"process {child.pid} on"), locked(path, what="it"):
            pytest.fail("two at once")
        child.kill()
        child.wait()
    assert path.exists()  # it had no time to clean up
    with locked(path, what="it"):
        pass
    assert not path.exists()


def test_a_lock_that_its_holder_removed_meanwhile_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between our opening and locking, another one may end and remove the file."""
    path, opened = tmp_path / "lock", []
    really = os.open

    def opens(*arguments: object, **more: object) -> int:
        handle = really(*arguments, **more)  # type: ignore[arg-type]
        opened.append(handle)
        if len(opened) == 1:
            path.unlink()
        return handle

    monkeypatch.setattr(os, "open", opens)
    with locked(path, what="it"):
        assert len(opened) == 2
        assert path.exists()


@pytest.mark.parametrize("text", [b"", b"\xff\x00", b'{"process": "x"}', b"[" * 999])
def test_a_holder_that_cannot_be_read_is_said_so(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "lock"
    with locked(path, what="it"):
        path.write_bytes(text)
        with pytest.raises(LockedError, match="does not say which"), locked(path, what="it"):
            pytest.fail("two at once")


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "lock"
    victim.write_text("precious")
    path.symlink_to(victim)
    with pytest.raises(StorageError, match="cannot lock it by"), locked(path, what="it"):
        pytest.fail("through a link")
    assert victim.read_text() == "precious"

"""One process at a time: a lock on a file, which the system frees when its holder ends.

Rules of this file: the standard library only. The lock is flock(2)'s, on the open file, never the
file's existence: a process that was killed leaves a file that locks nobody out. What stands in the
file names the holder for a message and decides nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from toolchain.core.errors import LockedError, StorageError

_LIMIT_BYTES = 1000


@contextmanager
def locked(path: Path, *, what: str) -> Iterator[None]:
    """Be the only one inside the block that holds ``path``; the file is removed at its end.

    ``what`` says in a message what is locked ("the training in build/domains/cars"). Raises
    LockedError, which names the holder, if another process or thread holds the lock, and
    StorageError where the file system has no file or no lock for it.
    """
    handle = _taken(path, what)
    try:
        yield
    finally:
        # Removed while it is locked: who opened it meanwhile sees that it is gone (_taken).
        with suppress(OSError):
            path.unlink()
        os.close(handle)


def _taken(path: Path, what: str) -> int:
    """Return the handle of ``path``, locked, with its holder written into it."""
    while True:
        try:
            # Not through a link: somebody else's file could be emptied.
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            handle = os.open(path, flags, 0o666)
        except OSError as err:
            raise _refused(path, what, err) from err
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(path, handle):
                with suppress(OSError):  # a full disk: it locks all the same
                    os.ftruncate(handle, 0)
                    os.write(handle, _own())
                return handle
        except BlockingIOError as err:
            holder = _holder(handle)
            os.close(handle)
            raise LockedError(
                f"expected to be alone at {what}, got another one at work there: {holder}",
                fix="wait until it has ended, stop it, or choose another folder",
            ) from err
        except OSError as err:
            os.close(handle)
            raise _refused(path, what, err) from err
        os.close(handle)  # its holder removed it between our opening and locking: make a new one


def _is(path: Path, handle: int) -> bool:
    """Tell whether ``path`` is still the name of the open file."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _own() -> bytes:
    since = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    return json.dumps(
        {"process": os.getpid(), "host": socket.gethostname(), "since": since}
    ).encode()


def _holder(handle: int) -> str:
    """Return who holds the lock, as its file says it."""
    try:
        about = json.loads(os.pread(handle, _LIMIT_BYTES, 0))
        return f"process {int(about['process'])} on {about['host']}, since {about['since']}"
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return "it does not say which process"


def _refused(path: Path, what: str, err: OSError) -> StorageError:
    return StorageError(
        f"cannot lock {what} by {path}: {err.strerror}",
        fix="choose a folder on a file system with locks (flock)",
    )

"""Durable steps: the single writes of which a store composes an order that outlives a power cut.

Rules of this file: the standard library only. Each function does one step and says whether it is
durable when it returns. A file's bytes are durable once the file is fsynced, its name once the
folder is (fsync(2)); nothing else is taken for granted, no order of names in one folder either. So
a caller fsyncs where its order needs it, and nowhere else.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from toolchain.core.errors import StorageError
from toolchain.core.files import beside, fsync_folder, refused

_CHUNK_BYTES = 1 << 20


def place(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Create ``path``, which must not exist, with ``data``; not durable.

    It is for files of a folder that is fsynced as a whole. Raises OSError.
    """
    handle = _created(path, mode)
    try:
        _write_all(handle, data, 0)
    finally:
        os.close(handle)


def copy(source: Path, path: Path, *, limit_bytes: int) -> None:
    """Create ``path``, which must not exist, with the bytes of ``source``; not durable.

    It copies in pieces, as a backbone may be larger than the memory that is free. Raises OSError,
    and StorageError for more than ``limit_bytes``.
    """
    handle = _created(path, 0o666)
    try:
        done = 0
        with source.open("rb", buffering=0) as file:
            while piece := file.read(_CHUNK_BYTES):
                if done + len(piece) > limit_bytes:
                    raise StorageError(
                        f"{source}: expected at most {limit_bytes} bytes, got more",
                        fix="take the file from its source again",
                    )
                _write_all(handle, piece, done)
                done += len(piece)
    finally:
        os.close(handle)


def append(path: Path, data: bytes, *, start: int) -> None:
    """Write ``data`` at byte ``start`` of the file, cut off what stood there, and fsync it.

    The file may be new; its name is then durable once its folder is fsynced. Raises StorageError
    for a file shorter than ``start``, and where the file system refuses; the file ends at ``start``
    again then, as far as that can be had.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        handle = os.open(path, flags, 0o644)
        try:
            size = os.fstat(handle).st_size
            if size < start:
                raise StorageError(
                    f"{path}: expected at least {start} bytes, got {size}",
                    fix="see what damaged it; da3 device verify tells the rest",
                )
            _append(handle, data, start, size)
        finally:
            os.close(handle)
    except OSError as err:
        raise refused(err, path) from err


def point(path: Path, target: str) -> None:
    """Let the link ``path`` lead to ``target``, by one rename; not durable before its folder is.

    A reader finds the old link or the new one. Raises StorageError.
    """
    partial = beside(path)
    try:
        os.symlink(target, partial)  # noqa: PTH211 - the target is text, and relative
        partial.replace(path)
    except OSError as err:
        with suppress(OSError):
            partial.unlink()
        raise refused(err, path) from err


def sync_folder(path: Path) -> None:
    """Make the names in the folder ``path`` durable. Raises StorageError."""
    try:
        fsync_folder(path)
    except OSError as err:
        raise refused(err, path) from err


def discard(path: Path) -> None:
    """Remove a file, a link, or a folder with all below it; nothing there is fine. Not durable.

    Raises StorageError.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as err:
        raise refused(err, path) from err


def _created(path: Path, mode: int) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)


def _append(handle: int, data: bytes, start: int, size: int) -> None:
    if size > start:
        os.ftruncate(handle, start)
    try:
        _write_all(handle, data, start)
        os.fsync(handle)
    except OSError:
        with suppress(OSError):
            os.ftruncate(handle, start)
        raise


def _write_all(handle: int, data: bytes, start: int) -> None:
    rest = memoryview(data)
    while rest:
        # One call may write only a part.
        written = os.pwrite(handle, rest, start)
        start += written
        rest = rest[written:]

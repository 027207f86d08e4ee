"""Files: the only way in which the toolchain puts bytes on a disk or takes them from it.

Rules of this file: the standard library only. A file appears under its name whole or not at all,
and a failure leaves nothing behind. An existing destination is an error, unless the caller asks to
overwrite it. Each write is fsynced before the name appears, and the directory after it: a name that
survives a power cut has its bytes. A reader states its limit before it reads the first byte. Parent
directories are not made unasked: a mistyped path shall not become a tree.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path, PurePosixPath

from toolchain.core.errors import ExistsError, StorageError

MIB = 1 << 20  # bytes
PARTIAL_SUFFIX = ".partial"
"""Ends the name of what is under way; whatever a killed process left may be removed by it."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}
_OCCUPIED = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}


def write_atomic(
    path: str | Path, data: bytes, *, overwrite: bool = False, mode: int = 0o666
) -> None:
    """Write ``data`` to ``path`` whole or not at all, durably (fsync of file and directory).

    ``mode``: the permissions of a new file, from its first byte on, before the umask.
    Raises ExistsError if ``path`` exists and ``overwrite`` is false, also when another process
    creates it meanwhile; StorageError if the file system refuses, with nothing left behind.
    """
    path = Path(path)
    if not overwrite:
        _refuse_existing(path)
    partial = beside(path)
    try:
        with _removed_in_the_end(partial):
            _write_new(partial, data, mode)
            _publish_file(partial, path, overwrite=overwrite)
            fsync_folder(path.parent)
    except OSError as err:
        raise _refused("write", path, err, needed_bytes=len(data)) from err


@contextmanager
def atomic_directory(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty directory beside ``path`` that becomes ``path`` when the block succeeds.

    Everything below it is fsynced before the rename; if the block raises, all of it is removed.
    With ``overwrite`` an existing directory is moved aside first and put back if the rename
    fails: between the two renames a reader finds no directory, never half of one. Raises
    ExistsError if ``path`` exists and ``overwrite`` is false, StorageError if the file system
    refuses, also inside the block.
    """
    path = Path(path)
    if not overwrite:
        _refuse_existing(path)
    partial = beside(path)
    try:
        with _removed_in_the_end(partial):
            partial.mkdir()
            yield partial
            _fsync_tree(partial)
            _publish_directory(partial, path, overwrite=overwrite)
            fsync_folder(path.parent)
    except OSError as err:
        raise _refused("write", path, err, needed_bytes=None) from err


def link_or_copy(source: Path, path: Path) -> None:
    """Give the file ``source`` a second name, or copy it where the file system has no hard links.

    Raises OSError; nothing is fsynced.
    """
    try:
        os.link(source, path)
    except OSError as err:
        if err.errno not in {*_NO_HARD_LINKS, errno.EXDEV}:
            raise
        shutil.copyfile(source, path)


def make_folder(path: Path, *, fix: str) -> None:
    """Make a folder and its parents, if they are not there. Raises StorageError with ``fix``."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise StorageError(f"cannot make the folder {path}: {err.strerror}", fix=fix) from err


def status(path: str | Path) -> os.stat_result | None:
    """Return what the file system says of ``path``, links followed; None where nothing lies there.

    A link that leads back to itself leads to nothing.

    Raises StorageError where it refuses to say. ``Path.is_dir`` and its like end in Python's own
    PermissionError for what lies in a folder that one may not enter.
    """
    try:
        return Path(path).stat()
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise _refused("read", Path(path), err, needed_bytes=None) from err
    except ValueError as err:  # a null in the name
        raise StorageError(f"cannot read {str(path)!r}: {err}", fix="check the path") from err


def resolved(path: str | Path) -> Path:
    """Return ``path`` absolute, its links followed as far as they lead.

    ``Path.resolve`` ends in Python's own RuntimeError for a link that leads back to itself.
    """
    return Path(os.path.realpath(path))


def stays_below(name: str) -> bool:
    """Whether the text ``name`` is a path below some folder, on every system.

    It looks at the text alone. A link below the folder may lead out of it all the same.
    """
    path = PurePosixPath(name)
    # On Windows a backslash parts folders, and a colon begins a drive or a stream.
    plain = "\\" not in name and ":" not in name and "\0" not in name
    return plain and bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def exists(path: str | Path) -> bool:
    """Whether something lies at ``path``. Raises StorageError as :func:`status`."""
    return status(path) is not None


def is_folder(path: str | Path) -> bool:
    """Whether ``path`` is a folder. Raises StorageError as :func:`status`."""
    about = status(path)
    return about is not None and stat.S_ISDIR(about.st_mode)


def is_file(path: str | Path) -> bool:
    """Whether ``path`` is a regular file. Raises StorageError as :func:`status`."""
    about = status(path)
    return about is not None and stat.S_ISREG(about.st_mode)


def names(folder: str | Path) -> list[str]:
    """Return what lies right in ``folder``, sorted, and nothing where there is no such folder.

    Raises StorageError where the file system refuses. ``Path.glob`` finds nothing then, in silence.
    """
    try:
        return sorted(path.name for path in Path(folder).iterdir())
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ENOTDIR):
            return []
        raise _refused("list", Path(folder), err, needed_bytes=None) from err


def refused(err: OSError, path: Path | None = None) -> StorageError:
    """Return the error for what the file system refused; without ``path``, ``err`` names it."""
    return _refused("use", path or Path(os.fsdecode(err.filename)), err, needed_bytes=None)


def read_limited(path: str | Path, *, limit_bytes: int, what: str) -> bytes:
    """Return the bytes of the regular file ``path``, at most ``limit_bytes`` of them.

    Raises as :func:`open_limited`, and StorageError for a file that shrinks or grows while it is
    read.
    """
    with _opened(Path(path), limit_bytes, what) as (handle, size):
        # One byte more than there should be: it shows a file that grew.
        data = os.read(handle, size + 1)
        # One call reads up to 2 GiB; a larger file, or a signal, needs more of them.
        while 0 < len(data) <= size and (part := os.read(handle, size + 1 - len(data))):
            data += part
    if len(data) != size:
        raise StorageError(
            f"{what} {path}: expected {size} bytes, got {len(data)}{'+' * (len(data) > size)}",
            fix="the file changed while it was read; read it again when its writer is done",
        )
    return data


@contextmanager
def open_limited(path: str | Path, *, limit_bytes: int, what: str) -> Iterator[tuple[FileIO, int]]:
    """Yield the regular file ``path``, open for reading without a buffer, and its size in bytes.

    ``what`` names the file for the reader of a message ("recipe", "bundle"). Raises StorageError
    for a missing file, a link to nowhere, a directory, device or pipe, a file larger than
    ``limit_bytes``, and for what the file system refuses inside the block.
    """
    with (
        _opened(Path(path), limit_bytes, what) as (handle, size),
        FileIO(handle, closefd=False) as file,
    ):
        yield file, size


@contextmanager
def _opened(path: Path, limit_bytes: int, what: str) -> Iterator[tuple[int, int]]:
    """Yield a file's handle and size in bytes."""
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            yield handle, _regular_size(handle, path, limit_bytes, what)
        finally:
            os.close(handle)
    except OSError as err:
        raise _refused(f"read the {what}", path, err, needed_bytes=None) from err
    except ValueError as err:  # a null in the name
        raise StorageError(f"cannot read the {what} {path!r}: {err}", fix="check the path") from err


def _regular_size(handle: int, path: Path, limit_bytes: int, what: str) -> int:
    """Size in bytes of an open regular file, or StorageError."""
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
        raise StorageError(
            f"{what} {path}: expected a regular file, got {kind}", fix=f"name the {what} itself"
        )
    if status.st_size > limit_bytes:
        raise StorageError(
            f"{what} {path}: expected at most {limit_bytes} bytes, got {status.st_size}",
            fix=f"check that this is the {what} that was meant",
        )
    return status.st_size


def beside(path: Path) -> Path:
    """Return a free name in the directory of ``path``, so that a rename never crosses disks."""
    # Cut, so that the suffix still fits into the 255 bytes that most file systems give a name.
    stem = path.name.encode(errors="ignore")[:100].decode(errors="ignore")
    return path.parent / f".{stem}.{secrets.token_hex(6)}{PARTIAL_SUFFIX}"


@contextmanager
def _removed_in_the_end(partial: Path) -> Iterator[None]:
    """Remove ``partial``, a file, a directory or nothing, before a message counts free bytes."""
    try:
        yield
    finally:
        # rmtree() skips a file and unlink() refuses a directory: one of the two removes it.
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):
            partial.unlink()


def _refuse_existing(path: Path) -> None:
    # exists() would follow a link to nowhere, whose name is taken all the same.
    if os.path.lexists(path):
        raise ExistsError(
            f"expected no file at {path}, got an existing one",
            fix="choose another path, remove it, or ask for overwriting (overwrite=True)",
        )


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Create ``path``, which must not exist, with ``data``, and fsync it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, mode), "wb", buffering=0) as file:
        rest = memoryview(data)
        while rest:
            # One call may write only a part.
            rest = rest[os.write(file.fileno(), rest) :]
        os.fsync(file.fileno())


def _publish_file(partial: Path, path: Path, *, overwrite: bool) -> None:
    if overwrite:
        partial.replace(path)
        return
    try:
        # A hard link fails if the name is taken; a rename would silently replace it.
        os.link(partial, path, follow_symlinks=False)
    except OSError as err:
        if err.errno not in _NO_HARD_LINKS:
            raise
        # FAT and the like have no hard links: the check narrows the race but cannot close it.
        _refuse_existing(path)
        partial.rename(path)


def _publish_directory(partial: Path, path: Path, *, overwrite: bool) -> None:
    if not (overwrite and path.is_dir() and not path.is_symlink()):
        partial.rename(path)
        return
    # A rename replaces an empty directory only, so the old one has to go first.
    aside = beside(path)
    path.rename(aside)
    try:
        partial.rename(path)
    except OSError:
        aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _fsync_tree(top: Path) -> None:
    """Fsync every file and directory below ``top`` and ``top`` itself, children first."""
    for child in sorted(os.scandir(top), key=lambda entry: entry.name):
        if child.is_dir(follow_symlinks=False):
            _fsync_tree(Path(child.path))
        elif not child.is_symlink():
            fsync_folder(Path(child.path))
    fsync_folder(top)


def fsync_folder(path: Path) -> None:
    """Fsync a folder, which makes its names durable, or a file. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refused(verb: str, path: Path, err: OSError, *, needed_bytes: int | None) -> StorageError:
    """Return the error that says what the file system refused, with sizes where space is short."""
    reason = err.strerror or str(err)
    if err.errno in _OCCUPIED and os.path.lexists(path):
        return ExistsError(
            f"expected no file at {path}, got an existing one",
            fix="choose another path, remove it, or ask for overwriting (overwrite=True)",
        )
    if err.errno in _FULL:
        need = "" if needed_bytes is None else f", {needed_bytes} bytes needed"
        # Only of a full disk do the free bytes say anything.
        free = f", {_free_bytes(path)} bytes free" if err.errno == errno.ENOSPC else ""
        return StorageError(
            f"cannot {verb} {path}: {reason}{need}{free}",
            fix=room_fix(err, "free some space or choose another disk"),
        )
    if err.errno in (errno.EMFILE, errno.ENFILE):
        return StorageError(
            f"cannot {verb} {path}: {reason}",
            fix="raise the limit (ulimit -n), or keep fewer installed domains loaded",
        )
    if err.errno == errno.ENOENT and verb == "write" and not path.parent.is_dir():
        return StorageError(
            f"cannot {verb} {path}: the directory {path.parent} does not exist",
            fix=f"make it first: mkdir -p {path.parent}",
        )
    return StorageError(f"cannot {verb} {path}: {reason}", fix="check the path and its permissions")


def room_fix(err: OSError, fix: str) -> str:
    """Return what helps when a file cannot be written: ``fix`` for a full disk.

    Free space does not help where the system limits what one file or one user may hold.
    """
    if err.errno == errno.EFBIG:
        return (
            "raise the limit on the size of a file (ulimit -f unlimited); if there is none, choose "
            "a disk whose file system takes larger files"
        )
    if err.errno == errno.EDQUOT:
        return "remove files of your own there, ask for a larger quota, or choose another disk"
    return fix


def shown_below(path: Path | str, root: Path) -> str:
    """Return ``path`` for people: below ``root`` with ``/`` in it, whole if it lies elsewhere."""
    place = Path(path)
    return place.relative_to(root).as_posix() if place.is_relative_to(root) else str(place)


def _free_bytes(path: Path) -> int | str:
    try:
        return shutil.disk_usage(path.parent).free
    except OSError:
        return "unknown"

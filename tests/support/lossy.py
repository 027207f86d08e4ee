"""``python -m tests.support.lossy FOLDER FILE``: a file system that writes down its calls.

Rules of this file: it lives in memory, mounted with FUSE on ``FOLDER``, and sees each call as the
kernel passes it on, whichever way a program makes it. When it is unmounted, it leaves the calls in
``FILE``.
"""

from __future__ import annotations

import errno
import os
import pickle
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, Popen, run
from typing import Any

from tests.support.power import Call, Disk, Node

_MODES = {
    "file": stat.S_IFREG | 0o644,
    "folder": stat.S_IFDIR | 0o755,
    "link": stat.S_IFLNK | 0o777,
}


class Lossy:
    """The operations of FUSE on a :class:`tests.support.power.Disk`."""

    use_ns = True

    def __init__(self) -> None:
        self.disk, self.calls = Disk(), list[Call]()
        self._modes: dict[Node, int] = {}

    def _take(self, what: str, path: str, to: str = "", data: bytes = b"", at: int = 0) -> None:
        call = Call(what, path.strip("/") or ".", to, data, at)
        self.disk.take(call)
        self.calls.append(call)

    def _find(self, path: str) -> Node:
        try:
            return self.disk.find(path.strip("/"))
        except KeyError:
            raise OSError(errno.ENOENT, path) from None

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        node = self._find(path)
        mode = self._modes.get(node, _MODES[node.kind])
        size = 0 if node.kind == "folder" else len(node.data)
        return {"st_mode": mode, "st_size": size, "st_nlink": 1}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *self._find(path).names]

    def readlink(self, path: str) -> str:
        return self._find(path).data.decode()

    def mkdir(self, path: str, mode: int) -> None:
        self._take("mkdir", path)

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        self._take("create", path)
        self._modes[self._find(path)] = stat.S_IFREG | mode
        return 0

    def open(self, path: str, flags: int) -> int:
        self._find(path)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return self._find(path).data[offset : offset + size]

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._take("write", path, data=bytes(data), at=offset)
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        self._take("truncate", path, at=length)

    def symlink(self, target: str, source: str) -> None:
        self._take("symlink", target, source)

    def link(self, target: str, source: str) -> None:
        self._take("link", source, target.strip("/"))

    def rename(self, old: str, new: str) -> None:
        self._take("rename", old, new.strip("/"))

    def unlink(self, path: str) -> None:
        self._find(path)
        self._take("unlink", path)

    def rmdir(self, path: str) -> None:
        if self._find(path).names:
            raise OSError(errno.ENOTEMPTY, path)
        self._take("rmdir", path)

    def fsync(self, path: str, datasync: int, fh: int) -> None:
        self._take("sync", path)

    fsyncdir = fsync

    def chmod(self, path: str, mode: int) -> None:
        self._modes[self._find(path)] = mode


def serve(folder: str, file: str) -> None:
    """Serve until it is unmounted, then write the calls."""
    import mfusepy

    class Operations(Lossy, mfusepy.Operations):  # type: ignore[misc]  # no types
        """Calls that it lacks are refused by the base."""

    system = Operations()
    mfusepy.FUSE(system, folder, foreground=True, nothreads=True, hard_remove=True)
    Path(file).write_bytes(pickle.dumps(system.calls))


def lacking() -> str:
    """Why no such file system can be mounted here; nothing where it can."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is not there for this user"
    try:
        import mfusepy  # noqa: F401
    except (ImportError, OSError, AttributeError) as err:
        return f"mfusepy: {err}"
    return ""


@contextmanager
def mounted(folder: Path) -> Iterator[list[Call]]:
    """Mount it on the new ``folder``; when it is unmounted, the calls are in the list."""
    folder.mkdir()
    file, calls = folder.with_name("calls"), list[Call]()
    server = Popen([sys.executable, "-m", "tests.support.lossy", str(folder), str(file)])
    try:
        for _ in range(400):
            if os.path.ismount(folder) or server.poll() is not None:
                break
            time.sleep(0.02)
        assert os.path.ismount(folder), "it did not come up"
        yield calls
    finally:
        run(["umount", str(folder)], stderr=DEVNULL, check=False)
        server.wait(20)
    calls += pickle.loads(file.read_bytes())


if __name__ == "__main__":
    serve(*sys.argv[1:])

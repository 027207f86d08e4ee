"""Records the calls of this process that change files below a folder.

Rules of this file: it stands between :mod:`os` and whoever calls it, and lets every call through. A
program that writes round ``os`` would not be seen; so whoever records compares the result with the
folder (:meth:`tests.support.power.Disk`).
"""

from __future__ import annotations

import os
import pathlib
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.power import Call

NAMES = (
    *("open", "write", "pwrite", "ftruncate", "fsync", "mkdir", "rmdir", "unlink", "remove"),
    *("rename", "replace", "link", "symlink"),
)


class Recorder:
    """``calls``: what was seen. ``before``: is asked before each call, and may raise OSError."""

    def __init__(self, base: Path, before: Callable[[str], None] = lambda what: None) -> None:
        self.base = str(base)
        self.calls: list[Call] = []
        self.before = before
        self._files: dict[int, str] = {}
        self._genuine = {name: getattr(os, name) for name in NAMES}

    @contextmanager
    def recording(self) -> Iterator[Recorder]:
        # Until Python 3.10 paths keep functions of os under names of their own.
        own = getattr(pathlib, "_NormalAccessor", None)
        kept = [name for name in NAMES if name != "open" and hasattr(own, name)]
        for name in NAMES:
            setattr(os, name, getattr(self, f"_{name}"))
        for name in kept:
            setattr(own, name, staticmethod(getattr(self, f"_{name}")))
        try:
            yield self
        finally:
            for name, genuine in self._genuine.items():
                setattr(os, name, genuine)
            for name in kept:
                setattr(own, name, staticmethod(self._genuine[name]))

    def damage(self, path: Path, data: bytes) -> None:
        """Change a file behind everybody's back."""
        path.chmod(0o644)
        with self._genuine_open(path) as handle:
            self._genuine["ftruncate"](handle, 0)
            self._genuine["pwrite"](handle, data, 0)
        self.calls.append(Call("damage", self._below(path) or "", data=data))

    @contextmanager
    def _genuine_open(self, path: Path) -> Iterator[int]:
        handle = self._genuine["open"](path, os.O_WRONLY)
        try:
            yield handle
        finally:
            os.close(handle)

    def _below(self, path: Any, dir_fd: int | None = None) -> str | None:
        """The path below the base, None for another; an open file stands for its path."""
        if isinstance(path, int):
            return self._files.get(path)
        text = os.fsdecode(path)
        if dir_fd is not None:
            text = str(Path(f"/proc/self/fd/{dir_fd}").readlink() / text)
        if not text.startswith(self.base + "/") and text != self.base:
            return None
        return os.path.relpath(text, self.base)

    def _do(self, what: str, call: Call | None, *args: Any, **options: Any) -> Any:
        if call is not None:
            self.before(call.what)
        result = self._genuine[what](*args, **options)
        if call is not None:
            self.calls.append(call)
        return result

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        below = self._below(path, dir_fd)
        if below is None:
            return int(self._genuine["open"](path, flags, mode, dir_fd=dir_fd))
        new = flags & os.O_CREAT and not os.path.lexists(path)
        call = Call("create", below) if new else None
        handle = int(self._do("open", call, path, flags, mode, dir_fd=dir_fd))
        self._files[handle] = below
        return handle

    def _write(self, handle: int, data: Any) -> int:
        at = os.lseek(handle, 0, os.SEEK_CUR) if handle in self._files else 0
        return self._written("write", handle, data, at, handle, data)

    def _pwrite(self, handle: int, data: Any, at: int) -> int:
        return self._written("pwrite", handle, data, at, handle, data, at)

    def _written(self, what: str, handle: int, data: Any, at: int, *args: Any) -> int:
        below = self._below(handle)
        call = None if below is None else Call("write", below, data=bytes(data), at=at)
        size = int(self._do(what, call, *args))
        assert call is None or size == len(call.data)
        return size

    def _ftruncate(self, handle: int, size: int) -> None:
        below = self._below(handle)
        call = None if below is None else Call("truncate", below, at=size)
        self._do("ftruncate", call, handle, size)

    def _fsync(self, handle: int) -> None:
        below = self._below(handle)
        call = None if below is None else Call("sync", below, site=_site())
        self._do("fsync", call, handle)

    def _one(self, what: str, name: str, path: Any, *args: Any, **options: Any) -> None:
        below = self._below(path, options.get("dir_fd"))
        self._do(name, None if below is None else Call(what, below), path, *args, **options)

    def _mkdir(self, path: Any, *args: Any, **options: Any) -> None:
        self._one("mkdir", "mkdir", path, *args, **options)

    def _rmdir(self, path: Any, **options: Any) -> None:
        self._one("rmdir", "rmdir", path, **options)

    def _unlink(self, path: Any, **options: Any) -> None:
        self._one("unlink", "unlink", path, **options)

    def _remove(self, path: Any, **options: Any) -> None:
        self._one("unlink", "remove", path, **options)

    def _two(self, what: str, name: str, path: Any, to: Any, **options: Any) -> None:
        below, there = self._below(path), self._below(to)
        call = None if below is None or there is None else Call(what, below, there)
        self._do(name, call, path, to, **options)

    def _rename(self, path: Any, to: Any, **options: Any) -> None:
        self._two("rename", "rename", path, to, **options)

    def _replace(self, path: Any, to: Any, **options: Any) -> None:
        self._two("rename", "replace", path, to, **options)

    def _link(self, path: Any, to: Any, **options: Any) -> None:
        self._two("link", "link", path, to, **options)

    def _symlink(self, target: Any, path: Any, *args: Any, **options: Any) -> None:
        below = self._below(path)
        call = None if below is None else Call("symlink", below, os.fsdecode(target))
        self._do("symlink", call, target, path, *args, **options)


def _site() -> str:
    """Who called, innermost last: files and functions of the toolchain."""
    frames = traceback.extract_stack()
    return " > ".join(
        f"{Path(frame.filename).stem}.{frame.name}:{frame.lineno}"
        for frame in frames
        if "/toolchain/" in frame.filename
    )

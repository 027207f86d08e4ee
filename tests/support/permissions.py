"""Permissions that hold for root too, so that tests of locked folders run as anybody."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_VERSION_3 = 0x20080522  # linux/capability.h
_OVERRIDES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


@contextmanager
def locked(path: Path, mode: int = 0) -> Iterator[None]:
    """Give ``path`` the mode ``mode`` inside the block, where this thread has no way round it."""
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        with _without_overrides():
            yield
    finally:
        path.chmod(before)


@contextmanager
def _without_overrides() -> Iterator[None]:
    """Take from root, in this thread, what lets it read everything."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    # Two halves of 32 bits, each: effective, permitted, inheritable.
    before = (ctypes.c_uint32 * 6)()
    if libc.capget(header, before) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    without = (ctypes.c_uint32 * 6)(*before)
    without[0] &= ~_OVERRIDES
    if libc.capset(header, without) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    try:
        yield
    finally:
        libc.capset(header, before)

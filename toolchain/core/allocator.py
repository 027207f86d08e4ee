"""What the C library does with memory that a program has freed.

Rules of this file: the standard library only. It changes the whole process, so only a program's
edge calls it (the command line), never the library.
"""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 1 << 30


def keep_freed_memory() -> bool:
    """Let the process reuse large blocks that it freed; return whether the C library can.

    By default glibc gives blocks back to the system and takes others, layer by layer, and the
    system clears each page anew. The thresholds of mallopt(3) end that. Without glibc, or where the
    user set thresholds of his own (``MALLOC_..._``, ``GLIBC_TUNABLES``), nothing changes.
    """
    own = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & set(os.environ)
    if own or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(name, _LARGE) for name in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))

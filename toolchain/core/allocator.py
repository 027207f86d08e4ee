"""How the C library gets and returns the memory of a process that trains.

Rules of this file: the standard library only. It changes the whole process, so only a program's
edge calls it (the command line), never the library.
"""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MAP_BYTES = 1 << 20
_TRIM_BYTES = 8 << 20
_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"


def bound_memory() -> bool:
    """Let resident memory follow what is in use; return whether the C library can.

    By default glibc raises the size from which a block is mapped by itself up to 32 MiB. Maps of
    layers then lie in one heap, whose holes took 2.4 times of what a training used. From 1 MiB on,
    each is mapped by itself here and goes back when it is freed. That costs page faults. PyTorch
    asks for huge pages, which halves their time, if a variable says so before it starts.

    Without glibc, or where the user set thresholds of his own (``MALLOC_..._``,
    ``GLIBC_TUNABLES``), nothing changes.
    """
    own = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & set(os.environ)
    if own or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    os.environ.setdefault(_HUGE_PAGES, "1")
    sizes = {_M_MMAP_THRESHOLD: _MAP_BYTES, _M_TRIM_THRESHOLD: _TRIM_BYTES}
    return all(mallopt(name, size) for name, size in sizes.items())

"""How the C library gets and returns the memory of a process that trains.

Rules of this file: the standard library only. It changes the whole process, so only a program's
edge calls it (the command line), never the library.
"""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MAP_BYTES = 2 << 20
HEAP_BYTES = 16 << 20
"""So much of freed small blocks may stay resident."""

_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"


def bound_memory() -> bool:
    """Let resident memory follow what is in use; return whether the C library can.

    By default glibc raises the size from which a block is mapped by itself up to 32 MiB. Maps of
    layers then lie in one heap, and its holes took 2.4 times what a training used. From 2 MiB on,
    each is mapped by itself here and goes back when it is freed. That costs page faults. PyTorch
    asks for huge pages, which takes most of them away, if a variable says so before it starts.

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
    sizes = {_M_MMAP_THRESHOLD: _MAP_BYTES, _M_TRIM_THRESHOLD: HEAP_BYTES}
    return all(mallopt(name, size) for name, size in sizes.items())

"""A lack of memory, as an error of ours; and how much there is.

Rules of this file: the standard library only. Python's MemoryError is none of the toolchain's
errors, so whoever catches those would let it end the process. The edges of the library (loading,
checking, the command line) turn it into one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolchain.core.errors import OutOfMemoryError


def out_of_memory(err: MemoryError, what: str = "") -> OutOfMemoryError:
    """Return the error for ``err``; ``what`` was being done."""
    detail = f": {err}" if str(err) else ""
    doing = f"{what}: " if what else ""
    return OutOfMemoryError(
        f"{doing}expected enough memory for what was asked, got too little{detail}",
        fix="end other programs, or ask for less at once",
    )


def available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Return how much a process can take before the system has to swap; None if it does not say.

    Source: proc(5), ``MemAvailable`` in kB of 1024.
    """
    try:
        match = re.search(r"^MemAvailable: +(\d{1,15}) kB$", meminfo.read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return None
    return None if match is None else int(match[1]) * 1024


@contextmanager
def memory_named(what: str) -> Iterator[None]:
    """Raise OutOfMemoryError, which names ``what``, for a MemoryError in the block."""
    try:
        yield
    except MemoryError as err:
        raise out_of_memory(err, what) from err

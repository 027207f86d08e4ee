"""A lack of memory, as an error of ours.

Rules of this file: the standard library only. Python's MemoryError is none of the toolchain's
errors, so whoever catches those would let it end the process. The edges of the library (loading,
checking, the command line) turn it into one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from toolchain.core.errors import OutOfMemoryError


def out_of_memory(err: MemoryError, what: str = "") -> OutOfMemoryError:
    """Return the error for ``err``; ``what`` was being done."""
    detail = f": {err}" if str(err) else ""
    doing = f"{what}: " if what else ""
    return OutOfMemoryError(
        f"{doing}expected enough memory for what was asked, got too little{detail}",
        fix="end other programs, or ask for less at once",
    )


@contextmanager
def memory_named(what: str) -> Iterator[None]:
    """Raise OutOfMemoryError, which names ``what``, for a MemoryError in the block."""
    try:
        yield
    except MemoryError as err:
        raise out_of_memory(err, what) from err

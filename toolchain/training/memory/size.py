"""Sizes of memory as people write them.

Rules of this file: the standard library only, so that a size is refused before PyTorch starts.
"""

from __future__ import annotations

import re

from toolchain.core.errors import UsageError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?i?)b?\s*", re.IGNORECASE | re.ASCII)


def parse_size(text: str | int) -> int:
    """Return bytes: ``64MB`` (10^6), ``64MiB`` (2^20), ``1.5GB``, ``65536``.

    Raises UsageError for anything else, or nothing at all.
    """
    match = _SIZE.fullmatch(str(text))
    size = float(match[1]) * _UNITS.get(match[2].lower(), 0) if match else 0
    if size < 1:
        raise UsageError(
            f"expected a size such as 64MB or 64MiB, got {str(text)[:40]!r}",
            fix="write a number with B, kB, MB, GB, KiB, MiB or GiB",
        )
    return int(size)

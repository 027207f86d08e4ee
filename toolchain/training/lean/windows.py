"""Sizes of windows as torch takes them: one number for both sides, or two.

Rules of this file: no tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

Size = int | Sequence[int]
Pair = tuple[int, int]


def pair(value: Size) -> Pair:
    """Return the sizes of both sides."""
    if isinstance(value, int):
        return value, value
    return value[0], value[-1]

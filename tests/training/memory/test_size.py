"""Sizes of memory as people write them."""

from __future__ import annotations

import pytest

from toolchain.core.errors import UsageError
from toolchain.training.memory.size import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64MB", 64_000_000),
        ("64MiB", 64 << 20),
        ("64 mib", 64 << 20),
        ("1.5GB", 1_500_000_000),
        ("2k", 2000),
        ("512 B", 512),
        (4096, 4096),
    ],
)
def test_sizes_are_read(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-5MB", "0", "0.5", "64MBit", "1e9", "64 TB", "९kB"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a size"):
        parse_size(text)

"""The allocator's bounds: set where glibc is, and never against the user."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

RESIDENT = """
from pathlib import Path
from toolchain.core.allocator import bound_memory
import numpy as np

bounded = bound_memory()
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
for _ in range(2):  # glibc's own rule learns from the first block that is freed
    blocks = [np.ones(4 << 20, np.uint8) for _ in range(32)]
    last = blocks.pop()  # the last one of the heap stays, with all the holes below it
    full = resident()
    del blocks
print(bounded, full - resident() >= 31 * (4 << 20) * 0.9)
"""
GLIBC = hasattr(ctypes.CDLL(None), "mallopt")


@pytest.mark.skipif(not (GLIBC and Path("/proc/self/statm").exists()), reason="needs glibc, Linux")
@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "True True"),
        ({"MALLOC_MMAP_THRESHOLD_": "33554432"}, "False False"),
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=33554432"}, "False False"),
    ],
)
def test_memory_that_is_freed_goes_back(variables: dict[str, str], says: str) -> None:
    """Against the user's own thresholds, where holes stay."""
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == says

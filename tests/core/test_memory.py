"""Memory: how much there is, and what a lack of it becomes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from toolchain.core.errors import OutOfMemoryError
from toolchain.core.memory import available_bytes, memory_named


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/meminfo is Linux's")
def test_this_machine_says_what_it_has_to_spare() -> None:
    free = available_bytes()
    assert free is not None
    assert free > 1 << 20


@pytest.mark.parametrize(
    ("text", "free"),
    [
        ("MemTotal:  9 kB\nMemAvailable:    3 kB\n", 3072),
        ("MemTotal:  9 kB\n", None),
        ("MemAvailable: many kB\n", None),
        ("", None),
    ],
)
def test_what_the_system_says_is_read_or_nothing(
    text: str, free: int | None, tmp_path: Path
) -> None:
    (tmp_path / "meminfo").write_text(text)
    assert available_bytes(tmp_path / "meminfo") == free
    assert available_bytes(tmp_path / "none") is None


def test_a_lack_of_memory_is_an_error_of_ours_that_names_the_work() -> None:
    message = "reading: expected enough memory"
    with pytest.raises(OutOfMemoryError, match=message), memory_named("reading"):
        raise MemoryError

"""Memory: how much there is, and what a lack of it becomes."""

from __future__ import annotations

import pytest

from toolchain.core.errors import OutOfMemoryError
from toolchain.core.memory import memory_named


def test_a_lack_of_memory_is_an_error_of_ours_that_names_the_work() -> None:
    message = "reading: expected enough memory"
    with pytest.raises(OutOfMemoryError, match=message), memory_named("reading"):
        raise MemoryError

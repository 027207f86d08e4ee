"""The plain toy."""

from __future__ import annotations

import pytest

from tests.support import cases
from tests.support.cases import Made


@pytest.fixture(scope="session")
def plain() -> Made:
    """The plain toy with an adaptor at every block."""
    return cases.made("plain")

"""The captured cases as fixtures."""

from __future__ import annotations

import pytest

from tests.support import cases
from tests.support.cases import CASES, Made


@pytest.fixture(scope="session", params=sorted(CASES))
def made(request: pytest.FixtureRequest) -> Made:
    """Every case in turn; nobody changes it."""
    return cases.made(request.param)


@pytest.fixture(scope="session")
def plain() -> Made:
    """The plain toy with an adaptor at every block."""
    return cases.made("plain")

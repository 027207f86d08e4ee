"""The exported toy domain, shared with ``tests/cli``."""

from __future__ import annotations

import pytest

from tests.support.toy_export import Run, exported


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return exported(tmp_path_factory.getbasetemp() / "toy-export")

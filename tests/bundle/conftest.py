from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.samples import MANIFEST, PAYLOADS
from toolchain.bundle import pack


@pytest.fixture(scope="session")
def good_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good bundle; nobody changes it."""
    path = tmp_path_factory.mktemp("good") / "cars.da3b"
    pack(path, MANIFEST, PAYLOADS)
    return path


@pytest.fixture(scope="session")
def good(good_path: Path) -> bytes:
    """The bytes of the good bundle."""
    return good_path.read_bytes()

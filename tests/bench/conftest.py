"""Four drawn domains on the registered toy, made once."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.benched import CLASSES, DOMAINS, SIDE, Benched
from toolchain.bench.domains import MaterialsSetup
from toolchain.bench.materials import Materials, read_index

SETUP = MaterialsSetup("toy", SIDE, DOMAINS, CLASSES)


@pytest.fixture(scope="session")
def materials(benched: Benched) -> Materials:
    materials = read_index(benched.work, SETUP.made())
    assert materials is not None, benched.stderr
    return materials


@pytest.fixture(scope="session")
def document(benched: Benched) -> dict[str, Any]:
    """A whole document of a quick run, as it comes back from JSON."""
    return benched.document

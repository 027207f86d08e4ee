"""Four drawn domains on resnet20, made once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from toolchain.bench import run
from toolchain.bench.domains import MaterialsSetup, make
from toolchain.bench.materials import Materials

SETUP = MaterialsSetup("resnet20", 32, 4, classes=7)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep these tests on one worker: the domains are made once."""
    here = str(Path(__file__).parent)
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.xdist_group("bench"))


@pytest.fixture(scope="session")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    return make(tmp_path_factory.mktemp("materials"), SETUP)


@pytest.fixture(scope="session")
def document(materials: Materials) -> dict[str, Any]:
    """A whole document of a quick run, as it comes back from JSON."""
    setup = run.BenchSetup(
        backbone=SETUP.backbone,
        side=SETUP.side,
        domains=SETUP.domains,
        classes=SETUP.classes,
        rounds=run.QUICK,
        work=materials.bundles[0].parent,
    )
    found: dict[str, Any] = json.loads(json.dumps(run.measure(setup)))
    return found

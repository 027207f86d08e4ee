"""A runner with the toy domain, an application and a server over it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.exported import Exported, make_domain
from toolchain.device import Runner
from toolchain.device.serve import Limits, Server
from toolchain.device.serve.app import App

# Small and quick, so that tests reach each of them.
LIMITS = Limits(body_bytes=200_000, json_bytes=100_000, time_s=10, concurrent=1, waiting=1)


@pytest.fixture
def runner(exported: Exported) -> Iterator[Runner]:
    """A runner that has the toy domain loaded as ``toy_chirps``."""
    with Runner(exported.backbone, max_batch=8) as made:
        made.load(exported.bundle)
        yield made


@pytest.fixture
def repository(exported: Exported, tmp_path: Path) -> Path:
    """A folder with the bundle alone; other tests export into the bundle's own."""
    folder = tmp_path / "repository"
    folder.mkdir()
    shutil.copy(exported.bundle, folder)
    return folder


@pytest.fixture
def app(runner: Runner, repository: Path) -> App:
    """The application, on a loopback address."""
    return App(runner, LIMITS, repository=repository, control=True, loopback=True)


@pytest.fixture
def server(runner: Runner, repository: Path) -> Iterator[Server]:
    """A server that answers."""
    with Server(runner, repository=repository, control=True, limits=LIMITS) as started:
        yield started


@pytest.fixture(scope="session")
def successor(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another release of the toy domain, with other tensors on the same backbone."""
    from toolchain.export.pipeline import export

    folder = tmp_path_factory.mktemp("successor")
    domain = make_domain(folder, seed=1)
    report = export(
        domain.recipe,
        checkpoint=domain.checkpoint,
        dist=folder / "dist",
        cache=exported.cache,
    )
    return report.bundle

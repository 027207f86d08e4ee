from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.fielded import Fielded, ToyPublisher, fielded, reopened
from toolchain.device.agent.agent import Agent


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> ToyPublisher:
    """A publisher of the toy backbone and its two domains; nobody changes it."""
    publisher = ToyPublisher(tmp_path_factory.mktemp("publisher") / "home")
    publisher.begin()
    return publisher


@pytest.fixture
def publisher(made: ToyPublisher, tmp_path: Path) -> ToyPublisher:
    """A copy of it, which a test may change."""
    shutil.copytree(made.home, tmp_path / "home", symlinks=True)
    return ToyPublisher(tmp_path / "home", made.now)


@pytest.fixture
def field(publisher: ToyPublisher, tmp_path: Path) -> Fielded:
    """A device that looks at the publisher's site and wants ``sample``; nothing is installed."""
    return fielded(tmp_path / "device", publisher, domains=("sample",))


@pytest.fixture(scope="session")
def ran(made: ToyPublisher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a device on which ``sample`` runs; nobody changes it."""
    path = tmp_path_factory.mktemp("ran") / "device"
    done = Agent(fielded(path, made, domains=("sample",)).device, supplies=path / "none").once()
    assert done.changed
    return path


@pytest.fixture
def running(ran: Path, publisher: ToyPublisher, tmp_path: Path) -> Fielded:
    """A copy of it, which looks at the publisher's copy."""
    shutil.copytree(ran, tmp_path / "running", symlinks=True)
    return reopened(tmp_path / "running", publisher)

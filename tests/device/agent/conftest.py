from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.fielded import Fielded, ToyPublisher, fielded


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

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.trusted import CARS, FLOWERS, RESNET, Device, Publisher, copied


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    """A publisher with two domains and a backbone, all published; nobody changes it."""
    publisher = Publisher(tmp_path_factory.mktemp("publisher") / "home")
    publisher.home.mkdir()
    publisher.init("cars", "flowers")
    releases = [
        publisher.sign(publisher.backbone(), RESNET),
        publisher.sign(publisher.bundle(), CARS),
        publisher.sign(publisher.bundle("flowers"), FLOWERS),
    ]
    publisher.publish(*releases)
    return publisher


@pytest.fixture
def publisher(made: Publisher, tmp_path: Path) -> Publisher:
    """A copy of it, which a test may change."""
    return copied(made, tmp_path / "home")


@pytest.fixture
def device(publisher: Publisher, tmp_path: Path) -> Device:
    """A device that knows the publisher's first root, and has not looked yet."""
    return Device(tmp_path / "trust", publisher.root, publisher.site)

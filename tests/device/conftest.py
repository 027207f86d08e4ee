"""What the tests of the device share: the toys' backbone and a runner on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.exported import Fleet
from toolchain.device.runtime.runner import Runner
from toolchain.device.store.layout import BUNDLE_NAME

ALL = ("first", "digits", "head", "da2", "wide", "every", "bgr", "grey", "always")


@pytest.fixture(scope="session")
def artefact(fleet: Fleet) -> Path:
    """The backbone of all domains of the fleet but ``foreign``."""
    return fleet["first"].backbone


@pytest.fixture
def runner(artefact: Path) -> Iterator[Runner]:
    """A runner with nothing loaded."""
    with Runner(artefact) as made:
        yield made


@pytest.fixture(scope="session")
def wide_runner(artefact: Path, fleet: Fleet) -> Iterator[Runner]:
    """All domains at once, on as many sessions as they need."""
    with Runner(artefact, sessions=5) as made:
        for name in ALL:
            made.load(fleet[name].bundle, name=name)
        yield made


@pytest.fixture
def folder(runner: Runner, fleet: Fleet, tmp_path: Path) -> Path:
    """The first domain, installed, and the file system's clock has gone on since."""
    runner.install(fleet["first"].bundle, tmp_path / "first")
    written = (tmp_path / "first" / BUNDLE_NAME).stat().st_ctime_ns
    clock = tmp_path / "clock"
    clock.touch()
    while clock.stat().st_ctime_ns <= written:
        clock.touch()
    return tmp_path / "first"

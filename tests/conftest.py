"""What every test may use: golden files with their update flag, and one exported toy domain."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.support import shared
from tests.support.exported import (
    Domain,
    Exported,
    Fleet,
    exported_once,
    make_domain,
    register,
)
from tests.support.kitted import Kitted, kitted_once
from tests.support.translations import collect_seldom, keep_translations
from toolchain.core import timing

if TYPE_CHECKING:
    from tests.support.benched import Benched
    from tests.support.toy_export import Run

# Test files that take longest. One worker runs a whole file: what a module makes is made once.
FIRST = (
    "device/engine/test_every_backbone.py",
    "export/test_digits.py",
    "cli/verbs/test_bench.py",
    "cli/test_exit_codes.py",
    "benchmarks/test_benchmarks.py",
    "training/adapt/test_attached.py",
    "bench/test_footprint.py",
    "cli/test_boundary.py",
    "export/graph/test_split.py",
)
GOLDENS = Path(__file__).parent / "goldens"

# How long an example takes says how busy the machine is, and nothing about the code.
settings.register_profile("any_load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_load")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-goldens",
        action="store_true",
        help="write what the code says today into tests/goldens/ instead of comparing",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files of ``FIRST`` first: whoever gets a long one last works on alone."""
    here = Path(__file__).parent
    places = {here / name: place for place, name in enumerate(FIRST)}
    gone = [name for name in FIRST if not (here / name).is_file()]
    assert not gone, f"FIRST names files that are not there: {gone}"
    items.sort(key=lambda item: places.get(item.path, len(FIRST)))


def pytest_sessionstart() -> None:
    collect_seldom()


def pytest_runtest_setup() -> None:
    keep_translations()


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with ``tests/goldens/<name>``; with --update-goldens, write it."""

    def compare(name: str, text: str) -> None:
        path = GOLDENS / name
        if request.config.getoption("--update-goldens"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"no golden file {path.name}: run pytest --update-goldens once"
        assert text == path.read_text(encoding="utf-8"), f"differs from tests/goldens/{name}"

    return compare


@pytest.fixture(scope="session", autouse=True)
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The folder of :mod:`tests.support.shared`: that of the run, above the workers' own."""
    own = tmp_path_factory.getbasetemp()
    shared.FOLDER = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"


@pytest.fixture(scope="session", autouse=True)
def terminal() -> None:
    """Signals end what tests start, also where whoever runs the tests ignores them (nohup(1))."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def short_turns() -> None:
    """A turn of a timing is a call or two: no test looks at how long anything takes."""
    timing.TURN_S = 0.0005


@pytest.fixture(scope="session")
def toy_backbone(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The backbone ``toy`` is registered, as a user's package would be."""
    register(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="session")
def toy_domain(toy_backbone: None, tmp_path_factory: pytest.TempPathFactory) -> Domain:
    """A domain's checkpoint on disk; nobody changes it."""
    return make_domain(tmp_path_factory.mktemp("domain"))


@pytest.fixture(scope="session")
def exported(toy_domain: Domain) -> Exported:
    """The domain exported once for all workers; nobody changes what was written."""
    return exported_once(toy_domain)


@pytest.fixture(scope="session")
def kitted(exported: Exported) -> Kitted:
    """The domain's kits for boards of every generation; nobody changes them."""
    return kitted_once(exported)


@pytest.fixture(scope="session")
def fleet(toy_backbone: None, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Domains of one backbone that differ in method, options, classes, pictures and release."""
    return Fleet(tmp_path_factory.mktemp("fleet"))


@pytest.fixture(scope="session")
def run(toy_backbone: None) -> Run:
    """A toy domain through the whole command line; nobody changes what it wrote."""
    from tests.support.toy_export import through_the_command_line

    return through_the_command_line()


@pytest.fixture(scope="session")
def benched(toy_backbone: None) -> Benched:
    """A whole quick run of ``da3 bench``; nobody changes what it wrote."""
    from tests.support import benched

    return benched.benched()

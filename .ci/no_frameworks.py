"""A pytest plugin: leave out the tests that need torch or onnx, where neither is installed.

``.ci/run`` uses it to test the device side on the Python versions of the boards. A test is left
out when it, its module or one of its fixtures imports a framework that is not there. The plugin
prints how many it left out, so a run that tests nothing is seen.

Rules of this file: a test is never left out because a room of the device side imported a
framework. Those rooms must run without one, so that test fails.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

import toolchain

FRAMEWORKS = ("torch", "onnx", "onnx_ir", "onnxscript", "sklearn", "tensorrt_rtx")
DEVICE_SIDE = ("core", "pictures", "recipe", "bundle", "trust", "device")
TOOLCHAIN = Path(toolchain.__file__).parent
FEWEST = 1000  # passed tests; fewer mean that something made almost every test be left out

left_out: list[str] = []


def frames(trace: TracebackType | None) -> Generator[Path]:
    """Return the files of the frames that an error passed, the innermost last."""
    while trace:
        yield Path(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next


def needs_a_framework(error: BaseException | None) -> bool:
    """Say whether ``error`` is a test's import of a framework, and not one of the device side."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return False
    if error.name.partition(".")[0] not in FRAMEWORKS:
        return False
    importer = [path for path in frames(error.__traceback__) if path.is_file()][-1]
    return not any(importer.is_relative_to(TOOLCHAIN / room) for room in DEVICE_SIDE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out a module of tests that imports a framework."""
    if not collection_path.match("test_*.py"):
        return None
    module = ".".join(collection_path.relative_to(config.rootpath).with_suffix("").parts)
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if needs_a_framework(error):
            left_out.append(str(collection_path.relative_to(config.rootpath)))
            return True
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, Any, Any]:
    """Skip a test whose fixtures need a framework."""
    return (yield from _skipped())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    """Skip a test that itself needs a framework."""
    return (yield from _skipped())


def _skipped() -> Generator[None, Any, Any]:
    try:
        return (yield)
    except ModuleNotFoundError as error:
        if needs_a_framework(error):
            pytest.skip(f"needs {error.name}")
        raise


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many modules of tests were left out."""
    terminalreporter.write_line(
        f"{len(left_out)} modules of tests left out: they import a framework"
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run in which hardly anything ran."""
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    if len(reporter.stats.get("passed", ())) < FEWEST:
        reporter.write_line(f"\nexpected at least {FEWEST} passed tests")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED

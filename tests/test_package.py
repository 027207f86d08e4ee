"""The package itself: version, names, ``python -m toolchain``."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import toolchain


def test_the_version_is_that_of_the_distribution() -> None:
    assert toolchain.__version__ == version(toolchain.DISTRIBUTION)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        toolchain.nothing  # noqa: B018


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "toolchain", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"da3 {toolchain.__version__}\n"

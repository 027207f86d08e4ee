"""The package itself: version, names, ``python -m toolchain``."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

import toolchain


def test_the_version_is_that_of_the_distribution() -> None:
    assert toolchain.__version__ == version(toolchain.DISTRIBUTION)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        toolchain.nothing  # noqa: B018


def test_each_program_has_its_entry_point() -> None:
    for name, entry in (("da3", "main"), ("da3-export", "export_main")):
        (program,) = entry_points(group="console_scripts", name=name)
        assert program.value == f"toolchain.cli:{entry}"
        script = (
            f"import sys; sys.argv[1:] = ['--help']; from toolchain.cli import {entry}; {entry}()"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
        assert done.stdout.startswith(f"Usage: {name} ".encode())


def test_a_terminal_that_lacks_letters_gets_escapes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "toolchain", "recipes", "check", str(tmp_path / "漢.yaml")]
    (tmp_path / "漢.yaml").write_text("title: x\n")
    done = subprocess.run(
        command, capture_output=True, env={"PYTHONIOENCODING": "latin-1"}, check=False
    )
    assert done.returncode == 1
    assert b"\\u6f22.yaml: faults" in done.stdout


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "toolchain", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"da3 {toolchain.__version__}\n"

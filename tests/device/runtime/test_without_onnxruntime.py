"""A board that runs TensorRT engines needs no onnxruntime: nothing on the way imports it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import toolchain

ROOT = Path(toolchain.__file__).parents[1]  # of the checkout, or of an installed wheel
ROOMS = ("boards", "engine", "store", "runtime", "runtime/trt")
# None in sys.modules makes every import of that name fail.
PROGRAM = """
import importlib, sys
blocked = ("onnxruntime", "onnx", "torch")
sys.modules.update(dict.fromkeys(blocked))
for name in sys.argv[1:]:
    importlib.import_module(name)
from toolchain.device import Runner
Runner(".")
"""


def modules() -> list[str]:
    """Every file right in the rooms that an engine's requests pass through."""
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for folder in ROOMS
        for path in sorted((ROOT / "toolchain" / "device" / folder).glob("*.py"))
        if path.stem != "__init__"
    ]


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_files_of_an_engine_import_without_onnxruntime() -> None:
    names = modules()
    assert {"toolchain.device.runtime.runner", "toolchain.device.runtime.trt.engine"} <= {*names}
    done = run(PROGRAM.partition("from toolchain")[0], *names)
    assert done.returncode == 0, done.stderr


def test_onnxruntime_is_loaded_where_a_backbones_folder_is_opened_and_not_before() -> None:
    """The same program fails when, and only when, a backbone has to be run."""
    done = run(PROGRAM)
    assert done.returncode != 0
    assert "import of onnxruntime halted" in done.stderr
    assert "_open_sessions" in done.stderr

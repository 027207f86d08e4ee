"""Help, lists and completion answer at once; a bundle is looked at without a framework."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.toy_export import Run

FRAMEWORKS = {"torch", "onnx", "onnxruntime", "onnx_ir", "onnxscript"}
LIGHT = FRAMEWORKS | {"numpy", "PIL", "yaml", "safetensors", "rfc8785"}
SCRIPT = """
import sys
from toolchain.cli import root
try:
    root.main(args=sys.argv[2:], prog_name="da3")
finally:
    print(sorted(set(sys.argv[1].split(",")) & set(sys.modules)), file=sys.stderr)
"""


def loaded(unwanted: set[str], *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, ",".join(unwanted), *words],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "words", ["--help", "export --help", "recipes new --help", "--version", "completion bash"]
)
def test_help_imports_no_numbers(words: str) -> None:
    assert loaded(LIGHT, *words.split()) == "[]"


@pytest.mark.parametrize("words", ["recipes ls", "backbones", "recipes show cars"])
def test_lists_import_no_framework(words: str) -> None:
    assert loaded(FRAMEWORKS, *words.split()) == "[]"


def test_a_bundle_and_a_checkpoint_are_inspected_without_a_framework(run: Run) -> None:
    assert loaded(FRAMEWORKS, "inspect", str(run.bundle)) == "[]"
    assert loaded(FRAMEWORKS, "inspect", str(run.checkpoint)) == "[]"


def test_check_never_imports_torch(run: Run) -> None:
    assert loaded({"torch"}, "check", str(run.bundle)) == "[]"

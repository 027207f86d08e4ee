"""What users may rely on: the names of the faces and the tree of errors.

``tests/goldens/public_names.txt`` pins them. Every other name may be renamed freely.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from toolchain.core import errors

ROOT = Path(__file__).parents[1]
FACES = ("training", "export", "device", "device.serve", "bundle", "trust")
HOW_TO_CHANGE = (
    "A name that no user needs is private: take it out of the face's __all__, and import it from "
    "its own file inside the toolchain. A name that users need stands in __all__ and in the docs. "
    "Then run: pytest tests/test_public_names.py --update-goldens"
)
IMPORT = re.compile(r"^ *(?:from (toolchain[\w.]*) import|import (toolchain[\w.]*))", re.MULTILINE)


def _face(name: str) -> ModuleType:
    return import_module(f"toolchain.{name}")


def _errors() -> list[str]:
    return [name for name, value in vars(errors).items() if inspect.isclass(value)
            and issubclass(value, errors.Da3Error)]  # fmt: skip


def test_the_public_names_are_the_golden_ones(golden: Callable[[str, str], None]) -> None:
    lines = [f"toolchain.{face} {name}" for face in FACES for name in sorted(_face(face).__all__)]
    lines += [f"toolchain.core.errors {name}" for name in sorted(_errors())]
    try:
        golden("public_names.txt", "\n".join(lines) + "\n")
    except AssertionError as err:
        raise AssertionError(f"{err}\n{HOW_TO_CHANGE}") from err


@pytest.mark.parametrize("face", FACES)
def test_every_public_name_is_there_and_explained(face: str) -> None:
    """A face may import a name late; a misspelt home shows only when the name is asked for."""
    for name in _face(face).__all__:
        value = getattr(_face(face), name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"toolchain.{face}.{name} has no docstring"


@pytest.mark.parametrize(
    "document", sorted(p.name for p in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
)
def test_documents_import_from_the_faces_only(document: str) -> None:
    path = ROOT / document if document == "README.md" else ROOT / "docs" / document
    allowed = {"toolchain", "toolchain.core.errors", *(f"toolchain.{face}" for face in FACES)}
    used = {a or b for a, b in IMPORT.findall(path.read_text(encoding="utf-8"))}
    assert used <= allowed, f"{document} imports from {used - allowed}. {HOW_TO_CHANGE}"

"""The public names of each room, compared with tests/goldens/public_names.txt.

A name is public when its file lists it in ``__all__`` or, without one, defines it at the top level
with no underscore in front. Changing the golden file is changing the interface.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

from toolchain import bundle, recipe, training

ROOT = Path(__file__).parents[1]


def _assigned(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def public_names(path: Path) -> list[str]:
    """The public names that a file defines, sorted."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {name for node in tree.body for name in _assigned(node)}
    for node in tree.body:
        if _assigned(node) == ["__all__"] and isinstance(node, ast.Assign):
            return sorted(ast.literal_eval(node.value))
    return sorted(name for name in names if not name.startswith("_"))


def test_public_names_are_the_golden_ones(golden: Callable[[str, str], None]) -> None:
    lines = []
    for path in sorted((ROOT / "toolchain").rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        if not place.startswith("toolchain/cli/"):  # the command line's interface is its options
            lines += [f"{place} {name}" for name in public_names(path)]
    golden("public_names.txt", "\n".join(lines) + "\n")


def test_rooms_with_a_public_face_keep_it(golden: Callable[[str, str], None]) -> None:
    """What ``from toolchain import <room>`` offers by name, and that every name is there."""
    lines = []
    for face in (training, bundle, recipe):
        for name in sorted(face.__all__):
            assert getattr(face, name) is not None
            lines.append(f"{face.__name__}.{name}")
    golden("rooms.txt", "\n".join(lines) + "\n")

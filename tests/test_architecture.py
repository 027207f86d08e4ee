"""The arrows between rooms and the weight of imports: docs/architecture.md is the rule."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "architecture.md"
PACKAGES = {"toolchain": "toolchain", "models": "da3_models", "recipes": "da3_recipes"}
FRAMEWORKS = {
    "torch": "torch",
    "torchvision": "torch",
    "onnx": "onnx",
    "onnx_ir": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnxruntime",
}


@dataclass(frozen=True)
class Import:
    """One import statement of a file; ``lazy`` inside a function, ``typing`` for types only."""

    file: str
    module: str
    lazy: bool
    typing: bool


def _is_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _walk(file: str, node: ast.AST, *, lazy: bool, typing: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(file, alias.name, lazy, typing)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                parts = Path(file).with_suffix("").parts[: -child.level]
                base = ".".join([PACKAGES[parts[0]], *parts[1:], *([base] if base else [])])
            for alias in child.names:
                yield Import(file, f"{base}.{alias.name}", lazy, typing)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from _walk(file, child, lazy=lazy or inside, typing=typing or _is_typing(child))


@cache
def files() -> dict[str, str]:
    """Every source file by its module's name."""
    found = {}
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join([package, *(p for p in parts if p != "__init__")])
            found[name] = str(path.relative_to(ROOT))
    return found


@cache
def imports() -> tuple[Import, ...]:
    found: list[Import] = []
    for file in files().values():
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        found += _walk(file, tree, lazy=False, typing=False)
    return tuple(found)


def room(file: str) -> str:
    """``toolchain/export/graph/link.py`` is graph, ``models/...`` is da3_models."""
    parts = Path(file).with_suffix("").parts
    return parts[1] if parts[0] == "toolchain" else PACKAGES[parts[0]]


def target(module: str) -> str | None:
    """The room that a module lies in, None outside of the project."""
    parts = module.split(".")
    if parts[0] in ("da3_models", "da3_recipes"):
        return parts[0]
    if parts[0] != "toolchain":
        return None
    rooms = {room(file) for file in files().values() if file.startswith("toolchain/")}
    return parts[1] if len(parts) > 1 and parts[1] in rooms else None


def table(heading: str) -> dict[str, list[str]]:
    """A table of the document by its first column."""
    text = DOCUMENT.read_text(encoding="utf-8").split(f"| {heading} |", 1)[1]
    rows = {}
    for line in text.splitlines()[2:]:
        if not line.startswith("|"):
            break
        first, *rest = (cell.strip() for cell in line.strip("|").split("|"))
        rows[first] = rest
    return rows


def names(cell: str) -> set[str]:
    return set(re.findall(r"[\w/.]+", cell)) - {"-"}


ENTRY = {"__init__", "__main__"}


def test_every_room_stands_in_the_document() -> None:
    found = {room(file) for file in files().values()} - ENTRY
    assert found == set(table("room | may import"))


@pytest.mark.parametrize("name", sorted(set(table("room | may import"))))
def test_arrows_point_one_way(name: str) -> None:
    """A room imports only the rooms that the document allows, and uses each that it allows."""
    allowed = names(table("room | may import")[name][0])
    used: dict[str, str] = {}
    for one in imports():
        reached = target(one.module)
        if room(one.file) == name and reached not in (None, name):
            used.setdefault(str(reached), one.file)
    assert set(used) <= allowed, {r: used[r] for r in set(used) - allowed}
    assert allowed <= set(used), f"the document allows what nobody uses: {allowed - set(used)}"


def test_rooms_have_no_cycle() -> None:
    """Law: the document's arrows have an order, and errors stand first."""
    arrows = {name: names(row[0]) for name, row in table("room | may import").items()}
    order = list(TopologicalSorter(arrows).static_order())
    assert order.index("errors") < order.index("adapt") < order.index("graph") < order.index("cli")
    assert arrows["errors"] == set()


def test_files_have_no_cycle() -> None:
    """Law: imports at the head of a file never come back to it."""
    known = files()
    arrows: dict[str, set[str]] = {name: set() for name in known}
    by_file = {file: name for name, file in known.items()}
    for one in imports():
        if one.lazy or one.typing:
            continue
        parent = one.module.rpartition(".")[0]
        reached = one.module if one.module in known else parent
        if reached in known and reached != by_file[one.file]:
            arrows[by_file[one.file]].add(reached)
    assert len(list(TopologicalSorter(arrows).static_order())) == len(known)


def test_files_that_alone_may_import() -> None:
    """Inside graph and check, few files see adapt, torch, runtime or graph."""
    for cell, (allowed,) in table("file | alone in its room may import").items():
        for wanted in names(allowed):
            kin = [
                n
                for c, (a,) in table("file | alone in its room may import").items()
                if wanted in names(a)
                for n in names(c)
            ]
            inside = next(iter(names(cell))).split("/")[0]
            users = {
                one.file.removeprefix("toolchain/")
                for one in imports()
                if room(one.file) == inside
                and not one.typing
                and wanted in (target(one.module), one.module.split(".")[0])
            }
            assert users <= {n for n in kin if n.startswith(f"{inside}/")}, (wanted, users)


@pytest.mark.parametrize("name", sorted(set(table("room | may import"))))
def test_frameworks_stay_in_their_rooms(name: str) -> None:
    """Not even lazily: a room that the table leaves out touches no framework."""
    row = table("room | torch | onnx | onnxruntime").get(name, ["-"] * 3)
    allowed = dict(zip(("torch", "onnx", "onnxruntime"), row, strict=True))
    for one in imports():
        framework = FRAMEWORKS.get(one.module.split(".")[0])
        if framework is None or room(one.file) != name:
            continue
        word = allowed[framework]
        assert word == "yes" or (word == "types only" and one.typing), (one.file, one.module)


HEAVY = """{'torch', 'onnx', 'onnx_ir', 'onnxscript', 'onnxruntime', 'tensorrt', 'sklearn', 'click',
'cv2', 'waitress', 'matplotlib'}""".replace("\n", " ")
LIGHT = (
    "toolchain",
    *(f"toolchain.{n}" for n in ("errors", "fields", "files", "digest", "preprocess", "recipe")),
    *(f"toolchain.{n}" for n in ("backbones", "bundle", "adapt", "graph", "check", "runtime")),
    *(f"toolchain.{n}" for n in ("serve", "bench")),
    *("da3_models", "da3_recipes"),
)
WEIGHTS: dict[str, set[str]] = {
    **{name: set() for name in LIGHT},
    "toolchain.training.adapt.checkpoint": set(),
    "toolchain.training.data": set(),
    "toolchain.cli": {"click"},
    "toolchain.inspect": set(),
    "toolchain.bundle.golden": set(),
    "toolchain.device.runtime.ort.backend": {"onnxruntime"},
    "toolchain.device.runtime.runner": {"onnxruntime"},
    "toolchain.pictures.video": set(),
    "toolchain.device.serve.app": set(),
    "toolchain.device.runtime.ort.session": {"onnxruntime"},
    "toolchain.device.runtime.ort.staged": {"onnxruntime"},
    "toolchain.export.check.bundles": {"onnxruntime"},
    "toolchain.export.check.parity": {"onnxruntime"},
    "toolchain.export.graph.link": {"onnx", "onnx_ir"},
    "toolchain.export.graph.stage": {"onnx", "onnx_ir"},
    "toolchain.export.graph.store": {"onnx", "onnx_ir"},
}
PROGRAM = """
import importlib, json, sys
heavy, found = {heavy}, {{}}
for name in sys.argv[1:]:
    ours = ("toolchain", "da3_models", "da3_recipes")
    for loaded in [m for m in sys.modules if m.split(".")[0] in ours]:
        del sys.modules[loaded]
    importlib.import_module(name)
    found[name] = sorted(heavy & set(sys.modules))
    if found[name]:
        break
print(json.dumps(found))
"""


def loaded(*modules: str) -> dict[str, list[str]]:
    import json

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(heavy=HEAVY), *modules],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_light_rooms_load_no_framework() -> None:
    """Fresh interpreter; the first that loads anything heavy ends it."""
    light = [name for name, weight in WEIGHTS.items() if not weight]
    assert loaded(*light) == {name: [] for name in light}


@pytest.mark.parametrize("name", [name for name, weight in WEIGHTS.items() if weight])
def test_a_file_loads_its_own_framework_only(name: str) -> None:
    assert set(loaded(name)[name]) == WEIGHTS[name]

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
DIVIDED = ("training", "device", "export", "cli")
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
    paths = {}
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join([package, *(p for p in parts if p != "__init__")])
            paths[name] = str(path.relative_to(ROOT))
    return paths


@cache
def imports() -> tuple[Import, ...]:
    edges: list[Import] = []
    for file in files().values():
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        edges += _walk(file, tree, lazy=False, typing=False)
    return tuple(edges)


def room(file: str) -> str:
    """``toolchain/export/graph/link.py`` is export, ``models/...`` is da3_models."""
    parts = Path(file).with_suffix("").parts
    return parts[1] if parts[0] == "toolchain" else PACKAGES[parts[0]]


def sub_room(file: str) -> str | None:
    """``toolchain/export/graph/link.py`` is export/graph; None in a room without sub-rooms."""
    parts = Path(file).with_suffix("").parts
    if parts[0] != "toolchain" or parts[1] not in DIVIDED or parts[2:] in ((), ("__init__",)):
        return None
    return "/".join(parts[1:3])


def reached_file(module: str) -> str | None:
    """The file of a module, or of the module that an imported name lies in; None outside."""
    known = files()
    return known.get(module) or known.get(module.rpartition(".")[0])


def target(module: str) -> str | None:
    """The room that a module lies in, None outside of the project."""
    file = reached_file(module)
    return None if file is None or file == "toolchain/__init__.py" else room(file)


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
    assert {room(file) for file in files().values()} - ENTRY == set(table("room | may import"))
    divided = {sub_room(file) for file in files().values()} - {None}
    assert divided == set(table("sub-room | may import"))


def test_there_are_few_rooms() -> None:
    """Law: at most sixteen at the top, loose files, models, recipes and benchmarks counted."""
    assert len(table("room | may import")) + len({"benchmarks"}) <= 16


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


@pytest.mark.parametrize("name", sorted(set(table("sub-room | may import"))))
def test_arrows_inside_a_room_point_one_way(name: str) -> None:
    """The same for the sub-rooms of one room; the first table rules what leaves the room."""
    allowed = names(table("sub-room | may import")[name][0])
    used: dict[str, str] = {}
    for one in imports():
        file = reached_file(one.module)
        reached = None if file is None or room(file) != room(one.file) else sub_room(file)
        if sub_room(one.file) == name and reached not in (None, name):
            used.setdefault(str(reached), one.file)
    assert set(used) <= allowed, {r: used[r] for r in set(used) - allowed}
    assert allowed <= set(used), f"the document allows what nobody uses: {allowed - set(used)}"


def test_no_verb_imports_a_verb() -> None:
    """Law: what two verbs need lies in the library or in cli/show."""
    for one in imports():
        file = reached_file(one.module)
        if file is not None and one.file.startswith("toolchain/cli/verbs/"):
            assert file == one.file or not file.startswith("toolchain/cli/verbs/"), one


def _order(arrows: dict[str, set[str]]) -> list[str]:
    """The names from the ground up; graphlib raises CycleError for a circle."""
    return list(TopologicalSorter(arrows).static_order())


def test_no_room_imports_upwards() -> None:
    """Law: the arrows of both tables have an order, and the rows of the first stand in it."""
    rooms = {name: names(row[0]) for name, row in table("room | may import").items()}
    _order(rooms)
    rows = list(rooms)
    for at, name in enumerate(rows):
        assert rooms[name] <= set(rows[:at]), f"{name} imports a room that stands above it"
    _order({name: names(row[0]) for name, row in table("sub-room | may import").items()})


def test_files_have_no_circle() -> None:
    """Law: no chain of imports comes back, those inside functions and for types counted."""
    arrows: dict[str, set[str]] = {file: set() for file in files().values()}
    for one in imports():
        file = reached_file(one.module)
        if file is not None and file != one.file:
            arrows[one.file].add(file)
    assert len(_order(arrows)) == len(arrows)


DEVICE_SIDE = ("core", "pictures", "recipe", "bundle", "trust", "device")


def test_the_device_side_has_neither_torch_nor_onnx() -> None:
    """Law: what runs on a device imports neither, not inside a function and not for types."""
    for one in imports():
        if room(one.file) in DEVICE_SIDE:
            assert FRAMEWORKS.get(one.module.split(".")[0]) not in ("torch", "onnx"), one


def test_files_that_alone_import_torch() -> None:
    """Inside export, few files see torch: a split on disk is linked and checked without it."""
    rows = table("file | alone in its room may import")
    alone = {file for cell in rows for file in names(cell)}
    for one in imports():
        if room(one.file) == "export" and FRAMEWORKS.get(one.module.split(".")[0]) == "torch":
            assert one.file.removeprefix("toolchain/") in alone, one


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
    *(
        f"toolchain.{n}"
        for n in ("core", "pictures", "recipe", "bundle", "trust", "training", "device")
    ),
    *(f"toolchain.{n}" for n in ("export", "inspect", "bench", "device.serve", "device.boards")),
    *("toolchain.core.errors", "toolchain.core.fields", "toolchain.pictures.preprocess"),
    *("da3_models", "da3_recipes"),
)
WEIGHTS: dict[str, set[str]] = {
    **{name: set() for name in LIGHT},
    "toolchain.training.adapt.checkpoint": set(),
    "toolchain.training.data": set(),
    "toolchain.cli": {"click"},
    "toolchain.bundle.golden": set(),
    "toolchain.device.runtime.ort.backend": {"onnxruntime"},
    "toolchain.device.runtime.runner": set(),
    "toolchain.device.runtime.trt.proof": set(),
    "toolchain.pictures.video": set(),
    "toolchain.device.serve.app": set(),
    "toolchain.device.runtime.ort.session": {"onnxruntime"},
    "toolchain.device.runtime.ort.staged": {"onnxruntime"},
    "toolchain.export.check.bundles": {"onnxruntime"},
    "toolchain.export.check.parity": set(),
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
    packages: dict[str, list[str]] = json.loads(done.stdout)
    return packages


def test_light_rooms_load_no_framework() -> None:
    """Fresh interpreter; the first that loads anything heavy ends it."""
    light = [name for name, weight in WEIGHTS.items() if not weight]
    assert loaded(*light) == {name: [] for name in light}


@pytest.mark.parametrize("name", [name for name, weight in WEIGHTS.items() if weight])
def test_a_file_loads_its_own_framework_only(name: str) -> None:
    assert set(loaded(name)[name]) == WEIGHTS[name]

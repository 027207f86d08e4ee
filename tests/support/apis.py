"""What the Python bindings of TensorRT have, release by release.

``tests/goldens/tensorrt-apis.json``: class -> member -> releases that have it ("" is the class
itself), taken with ``dir()`` from the real modules, for the classes that the toolchain touches.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_GOLDEN = Path(__file__).parents[1] / "goldens" / "tensorrt-apis.json"


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(_GOLDEN.read_text())
    return table


def releases() -> tuple[str, ...]:
    """Return the releases that are listed, oldest first."""
    return tuple(_table()[""])


def listing(release: str) -> dict[str, frozenset[str]]:
    """Return class -> members of one release."""
    classes = {}
    for kind, members in _table().items():
        if not kind or not _has(members[""], release):
            continue
        classes[kind] = frozenset(m for m, where in members.items() if m and _has(where, release))
    return classes


def every_member() -> frozenset[str]:
    """Return the members of all classes of all releases."""
    return frozenset(m for kind, members in _table().items() if kind for m in members if m)


def module(release: str, without: frozenset[str] = frozenset()) -> Any:
    """Return an object with exactly the names of a release, ``without`` some members."""
    kinds = {
        kind: type(kind, (), dict.fromkeys(members - without, 0))
        for kind, members in listing(release).items()
    }
    return SimpleNamespace(__version__=release, **kinds)


def _has(where: str, release: str) -> bool:
    return where == "all" or release in where.split()

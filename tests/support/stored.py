"""A small store: the toy backbone and its two domains, from the bundles of ``tests/bundles``.

``python -m tests.support.stored FOLDER`` makes what lies in ``tests/stores/N``, as it was written
while ``da3.store/N`` was the newest schema. It is never made anew: later versions have to open it.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

from toolchain.bundle import Bundle, open_bundle
from toolchain.device.store.state import Settings
from toolchain.device.store.store import Store, Writer

BUNDLES = Path(__file__).parents[1] / "bundles" / "2"
BACKBONE = BUNDLES / "backbone-toy-12px-bdf7c2399c75"
TOY, SAMPLE, PATCHED = "backbones/toy", "domains/sample", "domains/patched"
NOW = "2026-01-31T12:00:00Z"


@cache
def bundle(name: str) -> Bundle:
    """The bundle ``sample`` or ``patched``, verified."""
    return open_bundle(BUNDLES / f"{name}.da3b")


def clock() -> str:
    return NOW


def create(path: Path, **settings: Any) -> Store:
    """An empty store, whose clock stands still."""
    return Store.create(path, root=b"{}", settings=Settings(**settings), clock=clock)


def add(writer: Writer, unit: str, counter: int = 1, *, signed: bool = True) -> str:
    """Install what the unit is called after; return its digest."""
    if unit == TOY:
        folder = writer.add_backbone(unit, counter, BACKBONE, signed=signed)
    else:
        opened = bundle(unit.partition("/")[2])
        folder = writer.add_release(unit, counter, opened, "a test", signed=signed)
    return f"sha256:{folder.name}"


def run(writer: Writer, *units: str, counter: int = 1) -> None:
    """Install ``units``, activate them in one step, and commit."""
    writer.activate({unit: add(writer, unit, counter) for unit in units})
    writer.commit()


def filled(path: Path, **settings: Any) -> Store:
    """A store in which ``sample`` runs on the toy backbone."""
    store = create(path, **settings)
    with store.writing() as writer:
        run(writer, TOY, SAMPLE)
    return store


def make(folder: Path) -> None:
    """A store in the middle of a trial, with something in each of its fields."""
    store = filled(folder, quota_bytes=1 << 30)
    with store.writing() as writer:
        writer.activate({PATCHED: add(writer, PATCHED, 3)})
        writer.roll_back(reason="it answered nothing")
        writer.raise_floors({"root": 2, "domain-sample": 1}, NOW)
        writer.report({"unit": PATCHED, "outcome": "failed"})
        writer.fetched("domains/Käfer am Bach", 4, f"sha256:{'4' * 64}")
        writer.activate({PATCHED: bundle("patched").manifest_digest})


if __name__ == "__main__":
    make(Path(sys.argv[1]))

"""Generations: folders of links, and the one rename that exchanges them.

Rules of this file: a generation follows from the state, so one that is damaged can be made anew.
Its folder appears whole or not at all. ``current`` is exchanged by one rename, so a reader sees the
old generation or the new one, and a backbone never without its domains.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from toolchain.core import durable
from toolchain.core.files import atomic_directory, names
from toolchain.core.units import BACKBONES, DOMAINS, Unit
from toolchain.device.store.layout import CURRENT, GENERATIONS, PREVIOUS, Layout, content_link
from toolchain.device.store.state import Generation, State

KINDS = (BACKBONES, DOMAINS)


def make(layout: Layout, one: Generation) -> None:
    """Make the folder of links of a generation, durably. Raises ExistsError, StorageError."""
    with atomic_directory(layout.generation(one.number)) as partial:
        # Both, so that a reader finds a folder without links where there is no domain.
        for kind in KINDS:
            (partial / kind).mkdir()
        for unit, digest in one.units.items():
            (partial / unit).symlink_to(content_link(unit, digest))


def make_domains(layout: Layout, units: Iterable[str]) -> None:
    """Make the folder of each domain that applications know, durably. Raises StorageError."""
    for unit in map(Unit.parse, units):
        folder = layout.domain(unit.name)
        if unit.kind == "domains" and not _is_domain(folder, unit.name):
            durable.discard(folder)
            with atomic_directory(folder) as partial:
                for name in (CURRENT, PREVIOUS):
                    (partial / name).symlink_to(_domain_link(name, unit.name))


def point(layout: Layout, *, current: int, previous: int) -> None:
    """Exchange ``previous``, then ``current``; 0 removes one. Not durable before the root is."""
    for name, number in ((PREVIOUS, previous), (CURRENT, current)):
        if number:
            durable.point(layout.root / name, f"{GENERATIONS}/{number}")
        else:
            durable.discard(layout.root / name)


def pointed(layout: Layout, name: str) -> int:
    """Return the number of the generation to which a link leads; 0 for none, -1 for elsewhere."""
    target = _target(layout.root / name)
    if target is None:
        return 0
    folder, _, number = target.partition("/")
    is_number = number.isascii() and number.isdigit() and len(number) <= 16
    return int(number) if folder == GENERATIONS and is_number else -1


def is_made(layout: Layout, one: Generation) -> bool:
    """Whether the folder of links is there and leads where the state says."""
    folder = layout.generation(one.number)
    wanted = {unit: content_link(unit, digest) for unit, digest in one.units.items()}
    there = {f"{kind}/{name}" for kind in KINDS for name in names(folder / kind)}
    is_there = folder.is_dir() and names(folder) == sorted(KINDS) and there == set(wanted)
    return is_there and all(_target(folder / unit) == link for unit, link in wanted.items())


def faults(layout: Layout, state: State) -> list[str]:
    """Return where the links are not those that the state asks for."""
    found = []
    for name, number in ((CURRENT, state.current), (PREVIOUS, state.previous)):
        if (got := pointed(layout, name)) != number:
            found.append(f"{name}: expected generation {number}, got {got}")
    for one in state.generations:
        if not is_made(layout, one):
            found.append(f"{GENERATIONS}/{one.number}: expected the links of the state")
        found += [
            f"{unit}: expected its two links"
            for unit in map(Unit.parse, one.units)
            if unit.kind == "domains" and not _is_domain(layout.domain(unit.name), unit.name)
        ]
    return found


def _domain_link(which: str, name: str) -> str:
    return f"../../{which}/domains/{name}"


def _is_domain(folder: Path, name: str) -> bool:
    return all(
        _target(folder / which) == _domain_link(which, name) for which in (CURRENT, PREVIOUS)
    )


def _target(path: Path) -> str | None:
    """Return where a link leads, None where nothing is, an empty text for what is no link."""
    try:
        return os.readlink(path)  # noqa: PTH115 - its text, not a path
    except FileNotFoundError:
        return None
    except OSError:
        return ""

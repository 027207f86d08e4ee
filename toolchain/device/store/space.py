"""The space of a store: how much it holds, whether more may come, and what can go.

Rules of this file: the quota is compared before a byte is written. The state forgets a release
first, durably, and its folder goes after that: what the state holds is there. What is left of the
order below needs no fsync, because the next collection removes it again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from toolchain.core import durable
from toolchain.core.errors import QuotaError
from toolchain.core.files import PARTIAL_SUFFIX, names
from toolchain.device.store.layout import CONTENT, FOLDERS, GENERATIONS, Layout, hex_of
from toolchain.device.store.state import State


@dataclass(frozen=True, slots=True)
class GcReport:
    """What was removed, as paths below the store, and the bytes that this freed."""

    removed: tuple[str, ...]
    freed_bytes: int


def used_bytes(path: Path) -> int:
    """Return the bytes of all files below ``path``, links not followed."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118 - hot
            except FileNotFoundError:  # a reader renews its record meanwhile
                continue
    return total


def require_room(layout: Layout, state: State, more_bytes: int) -> None:
    """Raise QuotaError unless ``more_bytes`` may come."""
    quota = state.settings.quota_bytes
    if quota is None:
        return
    used = used_bytes(layout.root)
    if used + more_bytes > quota:
        raise QuotaError(
            f"expected at most {quota} bytes in {layout.root}, got {used} and {more_bytes} to come",
            fix="da3 device gc, or give the store a larger quota",
        )


def leftovers(layout: Layout, state: State) -> Iterator[Path]:
    """Yield what a killed process left: half-made files and folders, generations of no state."""
    for folder in (layout.root, *(layout.root / name for name in FOLDERS)):
        yield from (folder / name for name in names(folder) if name.endswith(PARTIAL_SUFFIX))
    for release in names(layout.root / "rel"):
        inside = layout.root / "rel" / release
        yield from (inside / name for name in names(inside) if name.endswith(PARTIAL_SUFFIX))
    known = {str(one.number) for one in state.generations}
    for name in names(layout.root / GENERATIONS):
        if name not in known:
            yield layout.root / GENERATIONS / name


def garbage(layout: Layout, state: State, keep_parts: Collection[str]) -> Iterator[Path]:
    """Yield what neither the current nor the previous generation needs, nor what is under way."""
    yield from leftovers(layout, state)
    held = {hex_of(one.digest) for one in state.held}
    for folder in (*CONTENT.values(), "engines"):
        yield from _without(layout.root / folder, lambda name: name in held)
    parts = {hex_of(digest) for digest in keep_parts} | held
    yield from _without(layout.root / "part", lambda name: name in parts)
    domains = {unit for one in state.generations for unit in one.units}
    yield from _without(layout.root / "domains", lambda name: f"domains/{name}" in domains)


def removed(layout: Layout, paths: Iterator[Path]) -> GcReport:
    """Remove ``paths`` and tell what went. Raises StorageError."""
    gone, freed = [], 0
    for path in sorted(set(paths)):
        freed += used_bytes(path) if path.is_dir() else path.lstat().st_size
        durable.discard(path)
        gone.append(path.relative_to(layout.root).as_posix())
    return GcReport(tuple(gone), freed)


def _without(folder: Path, keeps: Callable[[str], bool]) -> Iterator[Path]:
    yield from (folder / name for name in names(folder) if not keeps(name))

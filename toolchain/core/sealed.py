"""A folder whose manifest lists its files: whether it holds these, all of them, and no other.

Rules of this file: it reads and reports, each fault by the file's name; what a fault means is the
caller's to say. Backbone artefacts and engines share it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from toolchain.core.errors import Fault

_CHUNK_BYTES = 1 << 20


class Listed(Protocol):
    """One file as a manifest lists it; ``size`` in bytes."""

    @property
    def name(self) -> str:
        """Its name in the folder."""
        ...

    @property
    def digest(self) -> str:
        """``sha256:`` and hex digits."""
        ...

    @property
    def size(self) -> int:
        """Its bytes."""
        ...


def file_faults(
    folder: Path, entries: Iterable[Listed], beside: Collection[str]
) -> Iterator[Fault]:
    """Yield what is wrong with ``folder``; ``beside``: names that belong there without an entry.

    A link is a fault, as it may point at other bytes tomorrow. Raises OSError.
    """
    listed = tuple(entries)
    known = {entry.name for entry in listed} | set(beside)
    for name in sorted({entry.name for entry in os.scandir(folder)} - known):
        yield Fault(name[:64], "unexpected file")
    for entry in listed:
        file = folder / entry.name
        if file.is_symlink() or not file.is_file():
            yield Fault(entry.name, "expected a regular file, got none")
        elif (size := file.stat().st_size) != entry.size:
            yield Fault(entry.name, f"expected {entry.size} bytes, got {size}")
        elif (found := file_digest(file)) != entry.digest:
            yield Fault(entry.name, f"expected {entry.digest}, got {found}")


def file_digest(path: Path) -> str:
    """Return a file's sha256, read in pieces: it may be larger than the memory that is free."""
    running = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_CHUNK_BYTES):
            running.update(piece)
    return "sha256:" + running.hexdigest()

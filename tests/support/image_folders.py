"""Folders of empty files with the names of pictures, for tests that decode nothing."""

from __future__ import annotations

from pathlib import Path


def touch(root: Path, *names: str) -> Path:
    """Make an empty file of each name below ``root``, and return that."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def classes(root: Path, *names: str, count: int = 2, suffix: str = ".jpg") -> Path:
    """Make a folder of each name with ``count`` files, and return ``root``."""
    return touch(root, *(f"{name}/{i}{suffix}" for name in names for i in range(count)))

"""Packages that register backbones, installed for a test."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Install = Callable[[str, str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that installs a package as pip would: a module and its .dist-info."""

    def write(package: str, name: str, code: str, target: str = "TINY") -> None:
        root = tmp_path / f"site_{package}"
        info = root / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (root / f"{package}.py").write_text(code, encoding="utf-8")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[da3.backbones]\n{name} = {package}:{target}\n")
        monkeypatch.syspath_prepend(str(root))
        # A folder of the same second may be remembered as empty.
        importlib.invalidate_caches()
        sys.modules.pop(package, None)

    yield write
    for site in tmp_path.glob("site_*"):
        sys.modules.pop(site.name.removeprefix("site_"), None)

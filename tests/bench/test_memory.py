"""Memory of a further domain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from toolchain.bench.memory import private_bytes, resident_bytes
from toolchain.bench.run import QUICK
from toolchain.core.errors import RunError


def test_memory_that_is_touched_is_seen() -> None:
    before = resident_bytes(), private_bytes()
    block = bytearray(b"\1") * (32 << 20)
    assert resident_bytes() - before[0] > 24 << 20
    assert private_bytes() - before[1] > 24 << 20
    assert len(block) == 32 << 20


@pytest.mark.parametrize("text", [None, "", "one", "1"])
def test_a_system_that_does_not_tell_is_an_error(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "statm"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RunError, match="statm"):
        resident_bytes(path)


@pytest.mark.parametrize("text", [None, "Private_Dirty: many kB\n", "Private_Dirty:\n"])
def test_a_rollup_that_cannot_be_read_is_an_error(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "rollup"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RunError, match="rollup"):
        private_bytes(path)


def test_private_pages_are_added_up(tmp_path: Path) -> None:
    path = tmp_path / "rollup"
    path.write_text("Rss: 9 kB\nShared_Dirty: 4 kB\nPrivate_Clean: 2 kB\nPrivate_Dirty: 3 kB\n")
    assert private_bytes(path) == 5 * 1024


def test_every_way_has_a_slope(document: dict[str, Any]) -> None:
    part, domains = document["parts"]["memory"], document["settings"]["domains"]
    kinds = ["bundle", "bundle, many", "whole", "shared", "shared, extended"]
    assert list(part["ways"]) == kinds
    for kind, way in part["ways"].items():
        count = QUICK.many if kind == "bundle, many" else domains
        assert len(way["series"]) == way["domains"] == count
        first = domains - 1 if kind == "bundle, many" else 0
        grown = way["series"][-1] - way["series"][first]
        assert way["resident_bytes_each"] == pytest.approx(grown / (count - 1 - first))
        assert way["ratio"] == pytest.approx(way["resident_bytes_each"] / part["slots_bytes"])

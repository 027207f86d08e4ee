"""Folders whose manifest lists their files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain.core.sealed import file_digest, file_faults


@dataclass(frozen=True)
class Entry:
    name: str
    digest: str
    size: int


def folder(path: Path) -> list[Entry]:
    found = []
    for name in ("a", "b"):
        data = name.encode() * 9
        (path / name).write_bytes(data)
        found.append(Entry(name, "sha256:" + hashlib.sha256(data).hexdigest(), len(data)))
    (path / "manifest").write_text("{}")
    return found


def faults(path: Path, entries: list[Entry]) -> dict[str, str]:
    return {fault.path: fault.message for fault in file_faults(path, entries, {"manifest"})}


def test_what_is_listed_is_there(tmp_path: Path) -> None:
    assert faults(tmp_path, folder(tmp_path)) == {}


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (lambda p: (p / "c").write_text(""), {"c": "unexpected file"}),
        (lambda p: (p / "a").unlink(), {"a": "expected a regular file, got none"}),
        (lambda p: (p / "a").write_bytes(b"a" * 8), {"a": "expected 9 bytes, got 8"}),
        (lambda p: (p / "a").write_bytes(b"b" * 9), {"a": "expected sha256"}),
        (lambda p: (p / "a").rename(p / "manifest.d"), {"a": "expected a", "manifest.d": "unex"}),
    ],
)
def test_every_fault_is_named(tmp_path: Path, attack: object, said: dict[str, str]) -> None:
    entries = folder(tmp_path)
    assert callable(attack)
    attack(tmp_path)
    found = faults(tmp_path, entries)
    assert found.keys() == said.keys()
    assert all(found[name].startswith(text) for name, text in said.items())


def test_a_link_in_place_of_a_file(tmp_path: Path) -> None:
    entries = folder(tmp_path)
    (tmp_path / "a").rename(tmp_path.parent / "elsewhere")
    (tmp_path / "a").symlink_to(tmp_path.parent / "elsewhere")
    assert faults(tmp_path, entries) == {"a": "expected a regular file, got none"}


@given(st.binary(max_size=64), st.integers(0, 40000))
def test_the_digest_is_that_of_the_whole_file(data: bytes, times: int) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as name:
        path = Path(name) / "file"
        path.write_bytes(data * times)
        assert file_digest(path) == "sha256:" + hashlib.sha256(data * times).hexdigest()

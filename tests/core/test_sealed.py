"""Folders whose manifest lists their files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain.core.errors import BundleError, ExistsError, StorageError
from toolchain.core.fields import ListOf, SectionOf, choice, key
from toolchain.core.sealed import (
    SealedFile,
    SealedKind,
    SealedManifest,
    file_digest,
    file_faults,
    listing,
)


@dataclass(frozen=True, slots=True)
class ToyManifest(SealedManifest):
    FILE = "toy.json"

    schema: str = key(choice("toy/1"))
    files: tuple[SealedFile, ...] = key(ListOf(SectionOf(SealedFile), 1, 9))


TOY = SealedKind("toy", "toy.json", ToyManifest, "make it again", beside=("notes",))
CONTENTS = {"run.sh": b"exit", "data": b"12345", "notes": b"free"}
LISTED = {name: CONTENTS[name] for name in ("run.sh", "data")}


def toy(path: Path) -> ToyManifest:
    manifest = ToyManifest("toy/1", listing(SealedFile, LISTED))
    TOY.write(path, manifest, CONTENTS)
    return manifest


def test_what_is_written_is_opened_and_read(tmp_path: Path) -> None:
    """Law: a folder that was written opens to its manifest, and gives back the bytes."""
    manifest = toy(tmp_path / "toy")
    digest = "sha256:" + hashlib.sha256(manifest.to_json()).hexdigest()
    assert TOY.open(tmp_path / "toy") == (manifest, digest)
    assert [entry.name for entry in manifest.files] == ["data", "run.sh"]
    assert {e.name: TOY.read(tmp_path / "toy", e) for e in manifest.files} == LISTED
    assert [(tmp_path / "toy" / n).stat().st_mode & 0o100 for n in ("run.sh", "data")] == [0o100, 0]
    with pytest.raises(ExistsError):
        toy(tmp_path / "toy")


@pytest.mark.parametrize("data", [b"1234", b"123456", b"12340"])
def test_another_file_is_not_opened_and_not_read(tmp_path: Path, data: bytes) -> None:
    manifest = toy(tmp_path / "toy")
    (tmp_path / "toy" / "data").write_bytes(data)
    with pytest.raises(BundleError, match=r"toy: files: 1 fault\n  data: expected") as caught:
        TOY.open(tmp_path / "toy")
    assert caught.value.fix == "make it again"
    with pytest.raises((BundleError, StorageError), match="data: expected"):
        TOY.read(tmp_path / "toy", manifest.entry("data"))


def test_a_size_that_is_not_the_files(tmp_path: Path) -> None:
    manifest = toy(tmp_path / "toy")
    with pytest.raises(BundleError, match="data: expected 6 bytes, got 5"):
        TOY.read(tmp_path / "toy", replace(manifest.entry("data"), size=6))


@pytest.mark.parametrize("text", [b"", b"{}", b'{"files":[],"schema":"toy/1"}'])
def test_a_manifest_that_breaks_its_schema(tmp_path: Path, text: bytes) -> None:
    toy(tmp_path / "toy")
    (tmp_path / "toy" / "toy.json").write_bytes(text)
    with pytest.raises(BundleError, match=r"toy\.json"):
        TOY.open(tmp_path / "toy")


def folder(path: Path) -> list[SealedFile]:
    entries = []
    for name in ("a", "b"):
        data = name.encode() * 9
        (path / name).write_bytes(data)
        entries.append(SealedFile(name, "sha256:" + hashlib.sha256(data).hexdigest(), len(data)))
    (path / "manifest").write_text("{}")
    return entries


def faults(path: Path, entries: list[SealedFile]) -> dict[str, str]:
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
    messages = faults(tmp_path, entries)
    assert messages.keys() == said.keys()
    assert all(messages[name].startswith(text) for name, text in said.items())


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

"""Recognised by content, whatever the name; hostile files end in one error."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.toy_export import Run, write_recipe
from toolchain import bundle
from toolchain.core.errors import (
    CheckpointError,
    Da3Error,
    MissingPackageError,
    RecipeError,
    StorageError,
    UsageError,
    VerificationError,
)
from toolchain.inspect import KINDS, inspect


@pytest.fixture(scope="module")
def files(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of each kind that is a file, under names that say nothing."""
    folder = tmp_path_factory.mktemp("files")
    bundle.unpack(run.bundle, folder / "unpacked")
    sources = {
        "bundle": run.bundle,
        "graph": folder / "unpacked" / "swap-if.onnx",
        "golden": folder / "unpacked" / "golden.safetensors",
        "tensors": folder / "unpacked" / "slots.safetensors",
    }
    return {
        kind: Path(shutil.copy(source, folder / f"file-{index}"))
        for index, (kind, source) in enumerate(sources.items())
    }


@pytest.mark.parametrize("kind", ["bundle", "graph", "golden", "tensors"])
def test_a_file_is_known_by_its_content(files: dict[str, Path], kind: str) -> None:
    inspection = inspect(files[kind])
    assert (inspection.kind, inspection.path) == (kind, files[kind])
    assert kind in KINDS


def test_a_recipe_is_known_by_its_keys(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    assert inspect(path.rename(tmp_path / "toy.txt")).kind == "recipe"
    (tmp_path / "bad.yaml").write_text("# a comment\nbackbone: resnet20\n")
    with pytest.raises(RecipeError, match=r"bad\.yaml: \d+ faults"):
        inspect(tmp_path / "bad.yaml")


def test_a_folder_or_any_file_of_it(run: Run) -> None:
    for path in (run.checkpoint, *run.checkpoint.iterdir()):
        assert (inspect(path).kind, inspect(path).path) == ("checkpoint", run.checkpoint)
    for path in (run.backbone, run.backbone / "manifest.json"):
        assert (inspect(path).kind, inspect(path).path) == ("backbone", run.backbone)
    assert inspect(run.backbone / "weights.safetensors").kind == "tensors"


def test_an_unpacked_manifest_sends_to_the_bundle(run: Run, tmp_path: Path) -> None:
    bundle.unpack(run.bundle, tmp_path / "toy")
    for path in (tmp_path / "toy", tmp_path / "toy" / "manifest.json"):
        with pytest.raises(UsageError, match="the manifest of one that was unpacked"):
            inspect(path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[section]\n", b"\x7fELF\0", b'{"a": 1}', b"\x89PNG"]
)
def test_foreign_content_is_a_usage_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "toy.da3b").write_bytes(content)
    with pytest.raises(UsageError, match=r"toy\.da3b: expected a recipe"):
        inspect(tmp_path / "toy.da3b")


def test_what_is_no_file_is_refused_without_being_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UsageError):
            inspect(path)
    for path in (tmp_path / "missing", tmp_path / ("x" * 5000)):
        with pytest.raises(StorageError, match="cannot read"):
            inspect(path)


def test_altered_files_are_found(run: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run.checkpoint, tmp_path / "toy"))
    tensors = folder / "adaptor.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    with pytest.raises(CheckpointError, match="expected sha256"):
        inspect(folder)
    manifest = Path(shutil.copytree(run.backbone, tmp_path / "backbone")) / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"da3.backbone/1", b"da3.backbone/9"))
    with pytest.raises(VerificationError):
        inspect(manifest.parent)
    data = bytearray(run.bundle.read_bytes())
    data[0] ^= 1
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(VerificationError):
        inspect(tmp_path / "x")


@pytest.mark.parametrize("kind", ["bundle", "graph", "golden", "tensors"])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_law_any_truncation_or_change_ends_in_an_answer_or_one_error(
    files: dict[str, Path], tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    """``inspect`` returns or raises Da3Error, whatever became of a file."""
    content = bytearray(files[kind].read_bytes())
    at = data.draw(st.integers(0, min(len(content), 4096) - 1))
    content[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    answered(tmp_path, bytes(content[:end]))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode)))
@example(content=b"\x08\x0a")
@example(content=b"\x02\0\0\0\0\0\0\0{}")
@example(content=b"\xff\xff\xff\xff\0\0\0\0{")
@example(content=b"oci-layout\0")
@example(content=b"domain: &a [*a]\n")
@example(content=b'{"backbone":{')
@example(content=b'{"x":"da3.backbone/1"}')
def test_law_any_bytes_end_in_an_answer_or_one_error(tmp_path: Path, content: bytes) -> None:
    """``inspect`` returns or raises Da3Error for any bytes."""
    answered(tmp_path, content)


def answered(folder: Path, content: bytes) -> None:
    path = folder / "file"
    path.write_bytes(content)
    try:
        assert inspect(path).kind in KINDS
    except Da3Error as err:
        assert err.message


def test_a_graph_without_onnx_names_the_extra(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingPackageError, match=r"pip install '\.\[check\]'"):
        inspect(files["graph"])
    assert inspect(files["bundle"]).kind == "bundle"

"""The backbone artefact: written, verified, and matched with a bundle."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.samples import BACKBONE, TAPS
from toolchain.bundle import (
    BackboneArtefact,
    BackboneInput,
    BackboneManifest,
    BackboneRef,
    Tap,
    find_backbone,
    graph_digest,
    match,
    open_backbone,
    write_backbone,
)
from toolchain.core.canonical import canonical_json
from toolchain.core.digest import sha256
from toolchain.core.errors import (
    BackboneMismatchError,
    BundleError,
    DataError,
    ExistsError,
    StorageError,
)


@pytest.fixture
def artefact(tmp_path: Path) -> BackboneArtefact:
    return write_backbone(tmp_path, BACKBONE, graph=b"the graph", weights=b"the weights")


def test_what_is_written_is_read(artefact: BackboneArtefact) -> None:
    assert open_backbone(artefact.path) == artefact
    assert artefact.path.name == f"backbone-resnet20-32px-{sha256(b'weights')[7:19]}"
    assert artefact.graph_path.read_bytes() == b"the graph"
    assert artefact.weights_path.read_bytes() == b"the weights"


def test_the_graph_digest_binds_both_files(artefact: BackboneArtefact) -> None:
    graph, weights = sha256(b"the graph"), sha256(b"the weights")
    expected = sha256(f'{{"graph":"{graph}","weights":"{weights}"}}'.encode())
    assert artefact.manifest.graph_digest == graph_digest(graph, weights) == expected


def test_same_inputs_same_bytes(artefact: BackboneArtefact, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    again = write_backbone(tmp_path / "again", BACKBONE, graph=b"the graph", weights=b"the weights")
    for file in artefact.path.iterdir():
        assert (again.path / file.name).read_bytes() == file.read_bytes()


def test_an_existing_artefact_is_kept(artefact: BackboneArtefact, tmp_path: Path) -> None:
    with pytest.raises(ExistsError):
        write_backbone(tmp_path, BACKBONE, graph=b"x", weights=b"y")
    assert open_backbone(artefact.path) == artefact
    write_backbone(tmp_path, BACKBONE, graph=b"x", weights=b"y", overwrite=True)
    assert open_backbone(artefact.path).graph_path.read_bytes() == b"x"


def test_flipped_bits_are_found(artefact: BackboneArtefact) -> None:
    """Law: no bit of the four files can change unseen."""
    draw = random.Random(7)
    for file in sorted(artefact.path.iterdir()):
        good = file.read_bytes()
        for bit in draw.sample(range(8 * len(good)), min(8 * len(good), 250)):
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            file.write_bytes(bytes(bad))
            with pytest.raises(BundleError):
                open_backbone(artefact.path)
        file.write_bytes(good)
    assert open_backbone(artefact.path) == artefact


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="coreutils are not installed")
def test_other_programs_can_check_the_files(artefact: BackboneArtefact) -> None:
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(command, cwd=artefact.path, capture_output=True, text=True, check=True)
    assert done.stdout.count(": OK") == 3


def hidden_file(path: Path) -> None:
    (path / ".hidden").write_bytes(b"x")


def missing_weights(path: Path) -> None:
    (path / "weights.safetensors").unlink()


def linked_weights(path: Path) -> None:
    (path / "weights.safetensors").rename(path.parent / "elsewhere")
    (path / "weights.safetensors").symlink_to(path.parent / "elsewhere")


def weights_is_a_pipe(path: Path) -> None:
    missing_weights(path)
    os.mkfifo(path / "weights.safetensors")


def longer_graph(path: Path) -> None:
    (path / "backbone.onnx").write_bytes(b"the graph and more")


def missing_sums(path: Path) -> None:
    (path / "SHA256SUMS").unlink()


def missing_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def manifest_is_a_folder(path: Path) -> None:
    missing_manifest(path)
    (path / "manifest.json").mkdir()


def linked_manifest(path: Path) -> None:
    (path / "manifest.json").rename(path.parent / "elsewhere")
    (path / "manifest.json").symlink_to(path.parent / "elsewhere")


def huge_manifest(path: Path) -> None:
    (path / "manifest.json").write_bytes(b" " * (16 << 20) + b".")


def lost_sums(path: Path) -> None:
    (path / "SHA256SUMS").write_bytes(b"")


def another_graph(path: Path) -> None:
    (path / "backbone.onnx").write_bytes(b"The graph")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (hidden_file, ".hidden: unexpected file"),
        (missing_weights, "weights.safetensors: expected a regular file"),
        (linked_weights, "weights.safetensors: expected a regular file"),
        (weights_is_a_pipe, "weights.safetensors: expected a regular file"),
        (missing_sums, "SHA256SUMS: expected a regular file"),
        (missing_manifest, "manifest.json: expected a regular file"),
        (manifest_is_a_folder, "manifest.json: expected a regular file"),
        (linked_manifest, "manifest.json: expected a regular file"),
        (huge_manifest, "manifest.json: expected at most 16777216 bytes, got 16777217"),
        (lost_sums, "SHA256SUMS: expected the checksums"),
        (longer_graph, "backbone.onnx: expected 9 bytes, got 18"),
        (another_graph, "backbone.onnx: expected sha256:"),
    ],
)
def test_a_damaged_directory_is_refused(
    artefact: BackboneArtefact, damage: Callable[[Path], None], says: str
) -> None:
    damage(artefact.path)
    with pytest.raises(BundleError) as caught:
        open_backbone(artefact.path)
    assert says in caught.value.message
    assert str(artefact.path) in caught.value.message


def test_a_path_that_is_no_artefact(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="backbone manifest"):
        open_backbone(tmp_path / "missing")
    with pytest.raises(BundleError, match=r"manifest\.json: expected a regular file"):
        open_backbone(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": "da3.bundle/1"}, "schema: expected"),
        ({"opset": 0}, "opset: expected"),
        ({"blocks": []}, "blocks: expected a list of 1 to 512"),
        ({"name": "../x"}, "name: expected"),
        ({"graph_digest": "sha256:" + "0" * 64}, "graph_digest: expected"),
        ({"extra": 1}, "extra: unknown key"),
    ],
)
def test_a_manifest_that_breaks_the_schema(
    artefact: BackboneArtefact, change: dict[str, Any], says: str
) -> None:
    document = json.loads(artefact.manifest.to_json())
    with pytest.raises(BundleError) as caught:
        BackboneManifest.from_json(canonical_json({**document, **change}))
    assert says in caught.value.message


def test_the_two_files_have_fixed_names(artefact: BackboneArtefact) -> None:
    document = json.loads(artefact.manifest.to_json())
    document["files"].reverse()
    with pytest.raises(BundleError, match=r"expected backbone\.onnx and weights\.safetensors"):
        BackboneManifest.from_json(canonical_json(document))


def wanted(artefact: BackboneArtefact, **changes: Any) -> BackboneRef:
    manifest = artefact.manifest
    ref = BackboneRef(manifest.name, manifest.weights_digest, manifest.graph_digest, TAPS[:1])
    return dataclasses.replace(ref, **changes)


def test_a_bundle_matches_its_backbone(artefact: BackboneArtefact) -> None:
    match(wanted(artefact), artefact, "cars")


@pytest.mark.parametrize("key", ["weights_digest", "graph_digest"])
def test_a_mismatch_shows_both_digests(artefact: BackboneArtefact, key: str) -> None:
    other = sha256(b"other")
    with pytest.raises(BackboneMismatchError) as caught:
        match(wanted(artefact, **{key: other}), artefact, "cars")
    assert other in caught.value.message
    assert getattr(artefact.manifest, key) in caught.value.message
    assert "bundle for 'cars'" in caught.value.message
    assert "backbone-resnet20-" in caught.value.fix
    assert caught.value.exit_code == 4


def test_a_tap_that_the_backbone_lacks(artefact: BackboneArtefact) -> None:
    taps = (Tap("block01.input", (16, 32, 33), "float32"),)
    with pytest.raises(BackboneMismatchError, match=r"lacks the taps .*block01\.input"):
        match(wanted(artefact, taps=taps), artefact, "cars")


def test_a_backbone_is_found_as_itself_and_in_its_folder(artefact: BackboneArtefact) -> None:
    for place in (artefact.path, artefact.path.parent):
        assert find_backbone(wanted(artefact), 32, place).path == artefact.path


def test_one_backbone_at_two_sizes_is_two_artefacts(tmp_path: Path) -> None:
    """The same weights at another picture size are another graph, and both lie side by side."""
    large = dataclasses.replace(BACKBONE, input=BackboneInput(size=64, channels=3))
    small = write_backbone(tmp_path, BACKBONE, graph=b"at 32", weights=b"the weights")
    other = write_backbone(tmp_path, large, graph=b"at 64", weights=b"the weights")
    assert small.path != other.path
    for size, artefact in ((32, small), (64, other)):
        assert find_backbone(wanted(artefact), size, tmp_path).manifest == artefact.manifest
        match(wanted(artefact), artefact, "cars")
    with pytest.raises(BackboneMismatchError, match="graph_digest"):
        match(wanted(small), other, "cars")


def test_an_artefact_from_before_sizes_stood_in_names_is_found(artefact: BackboneArtefact) -> None:
    old = artefact.path.with_name(artefact.path.name.replace("-32px", ""))
    artefact.path.rename(old)
    result = find_backbone(wanted(artefact), 32, old.parent)
    assert (result.path, result.manifest) == (old, artefact.manifest)


def test_a_backbone_that_is_not_there_is_told_by_its_name(
    artefact: BackboneArtefact, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"expected the backbone {artefact.path.name} at"):
        find_backbone(wanted(artefact), 32, tmp_path / "nowhere")

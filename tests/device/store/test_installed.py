"""Installed domains: what is laid out, loaded without hashing, and tested again where needed."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from tests.support.altered import ignored_slot, with_graph
from tests.support.drawn import same, tensor
from tests.support.exported import Fleet
from toolchain import bundle
from toolchain.bundle.release import read_release
from toolchain.core.digest import sha256
from toolchain.core.errors import BackboneMismatchError, ClosedError, ExistsError, SelftestError
from toolchain.device import Runner
from toolchain.device.store import installed
from toolchain.device.store.layout import BUNDLE_NAME, RECORD_NAME


def test_what_is_read_is_what_the_bundle_gives(fleet: Fleet, folder: Path) -> None:
    package = bundle.open_bundle(fleet["first"].bundle)
    expected = read_release(package)
    read = installed.read(folder)
    release = read.release
    assert read.renewed is None
    assert (
        read.tested_with == f"onnxruntime {ort.__version__} cpu {expected.graph('swap-if').digest}"
    )
    assert release.slots.keys() == expected.slots.keys()
    assert all(same(release.slots[name], expected.slots[name]) for name in expected.slots)
    for name in ("name", "version", "digest", "classes", "preprocess", "gates"):
        assert getattr(release, name) == getattr(expected, name), name
    assert {n: g.digest for n, g in release.graphs.items()} == {
        n: g.digest for n, g in expected.graphs.items()
    }
    assert release.graph("swap-if").read() == expected.graph("swap-if").read()
    assert len(release.golden()) == len(expected.golden())
    assert (folder / BUNDLE_NAME).read_bytes() == fleet["first"].bundle.read_bytes()


def test_an_installed_domain_answers_as_its_bundle(
    runner: Runner, fleet: Fleet, folder: Path
) -> None:
    """And without another self-test on the same session."""
    whole = runner.load(fleet["first"].bundle)
    domain = runner.load(folder, name="kept")
    assert domain.release == whole.release
    assert "selftest" in whole.seconds
    assert "selftest" not in domain.seconds
    images = tensor(4)
    assert same(runner.infer(images, "kept").logits, runner.infer(images, "toy_chirps").logits)


def test_installing_neither_loads_nor_keeps_a_session(runner: Runner, folder: Path) -> None:
    assert (folder / BUNDLE_NAME).is_file()
    assert runner.domains == {}
    assert runner.facts.sessions == 0


def test_a_test_counts_for_the_graph_that_it_ran_on(artefact: Path, folder: Path) -> None:
    """Tested as swap-if; swap-rows and static-if were never run on this device."""
    choices: list[Any] = [{"form": "rows"}, {"flavour": "static"}]
    for choice in choices:
        with Runner(artefact, **choice) as other:
            assert "selftest" in other.load(folder).seconds
    with Runner(artefact) as again:
        assert "selftest" not in again.load(folder).seconds


def test_a_test_by_another_onnxruntime_is_done_again(
    artefact: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "__version__", "0.0.1")
    with Runner(artefact) as other:
        assert "selftest" in other.load(folder).seconds


def hard_linked(folder: Path) -> None:
    os.link(folder / BUNDLE_NAME, folder.parent / "snapshot")


def made_writable(folder: Path) -> None:
    (folder / BUNDLE_NAME).chmod(0o644)


def given_to_its_owner(folder: Path) -> None:
    os.chown(folder / BUNDLE_NAME, os.getuid(), os.getgid())


def touched(folder: Path) -> None:
    os.utime(folder / BUNDLE_NAME, ns=(1, 1))


def exchanged(folder: Path) -> None:
    """The same bytes and the same time in another inode, as after a remount."""
    shutil.copy2(folder / BUNDLE_NAME, folder / "copy")
    (folder / "copy").replace(folder / BUNDLE_NAME)


def restored(folder: Path) -> None:
    """As from a backup that keeps the times."""
    shutil.copytree(folder, folder.with_name("backup"), copy_function=shutil.copy2)
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("backup"), folder, copy_function=shutil.copy2)


VOLATILE = [hard_linked, made_writable, given_to_its_owner, touched, exchanged, restored]


@pytest.mark.parametrize("change", VOLATILE, ids=[change.__name__ for change in VOLATILE])
def test_the_same_bytes_are_verified_and_tested_again_and_recorded_anew(
    runner: Runner,
    fleet: Fleet,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Path], None],
) -> None:
    """Told once: the next load finds the new record."""
    runner.load(fleet["first"].bundle)
    expected = runner.infer(tensor(2)).logits
    change(folder)
    assert "selftest" in runner.load(folder, name="kept", selftest=False).seconds
    assert same(runner.infer(tensor(2), "kept").logits, expected)
    (message,) = caplog.messages
    assert message.startswith(f"{folder}: the record is not of the file as it is now")
    assert message.endswith("the record renewed")
    assert "selftest" not in runner.replace(folder, name="kept").seconds
    assert len(caplog.messages) == 1
    read = installed.read(folder)
    assert read.renewed is None
    assert len(read.release.golden()) > 0


def test_a_record_of_an_earlier_version_is_renewed(
    artefact: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It said of gates what the manifest said; the graph says it now."""
    record = json.loads((folder / RECORD_NAME).read_bytes().partition(b"\n")[2])
    body = json.dumps({**record, "schema": "da3.installed/1", "fixed": {"block00": True}}).encode()
    (folder / RECORD_NAME).write_bytes(f"{sha256(body)}\n".encode() + body)
    with Runner(artefact, flavour="static") as runner:
        assert "selftest" in runner.load(folder).seconds
        assert not runner.infer(tensor(8)).gates[:, 0].all()
    assert len(caplog.messages) == 1
    assert installed.read(folder).renewed is None


def test_a_folder_that_cannot_be_written_is_verified_at_each_load(
    runner: Runner, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that refuses every write, as one that is mounted read-only."""
    touched(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        for name in ("one", "two"):
            assert "selftest" in runner.load(folder, name=name).seconds
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ["as at each load: cannot write" in message for message in caplog.messages] == [
        True,
        True,
    ]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("change", [None, touched])
def test_a_load_verifies_the_bundle_once_whatever_it_reads_of_it(
    artefact: Path,
    fleet: Fleet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None] | None,
) -> None:
    """A static domain with a patch reads all: the graph twice, the patch and the golden data."""
    with Runner(artefact) as runner:
        runner.install(fleet["tuned"].bundle, tmp_path / "tuned")
    if change is not None:
        change(tmp_path / "tuned")
    paths: list[Any] = []
    genuine = bundle.open_bundle

    def counted(path: Any) -> bundle.Bundle:
        paths.append(path)
        return genuine(path)

    monkeypatch.setattr(installed, "open_bundle", counted)
    with Runner(artefact, flavour="static") as runner:
        assert "selftest" in runner.load(tmp_path / "tuned").seconds
    assert paths == [tmp_path / "tuned" / BUNDLE_NAME]


def test_a_bundle_of_another_backbone_is_not_installed(
    runner: Runner, fleet: Fleet, tmp_path: Path
) -> None:
    with pytest.raises(BackboneMismatchError):
        runner.install(fleet["foreign"].bundle, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_bundle_that_fails_its_test_is_not_installed(
    runner: Runner, fleet: Fleet, tmp_path: Path
) -> None:
    path = with_graph(fleet["first"], tmp_path, ignored_slot)
    with pytest.raises(SelftestError):
        runner.install(path, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_exists_is_not_overwritten(
    runner: Runner, fleet: Fleet, folder: Path
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ExistsError, match="fix: name another for each release"):
        runner.install(fleet["next"].bundle, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_closed_runner_installs_nothing(artefact: Path, fleet: Fleet, tmp_path: Path) -> None:
    runner = Runner(artefact)
    runner.close()
    with pytest.raises(ClosedError):
        runner.install(fleet["first"].bundle, tmp_path / "new")
    assert not (tmp_path / "new").exists()

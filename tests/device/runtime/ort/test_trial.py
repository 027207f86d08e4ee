"""The trial: what a hostile graph does to the process that tries it, and to nobody else."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import altered
from tests.support.drawn import tensor
from tests.support.exported import Exported, Fleet
from tests.support.waiting import until
from toolchain import bundle
from toolchain.bundle import BackboneArtefact
from toolchain.bundle.limits import SLOWEST_PER_S, computing_seconds
from toolchain.bundle.release import Release, read_release
from toolchain.core.errors import BundleError, SelftestError
from toolchain.device import Runner
from toolchain.device.boards.machine import available_bytes
from toolchain.device.runtime.ort import trial
from toolchain.device.store import installed


def tried(path: Path, exported: Exported, *graphs: str) -> None:
    release = read_release(bundle.open_bundle(path))
    artefact = bundle.open_backbone(exported.backbone)
    trial.prove(path, release, artefact, graphs or ("swap-if",))


def children() -> set[int]:
    """The processes that this one has started and not waited for; other tests may have some."""
    pids: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        # A thread may end between the listing and the reading. It waits for its own children.
        with suppress(FileNotFoundError, ProcessLookupError):
            pids |= {int(pid) for pid in (task / "children").read_text().split()}
    return pids


def test_what_was_exported_passes_and_is_tried_once(fleet: Fleet) -> None:
    exported = fleet["first"]
    tried(exported.bundle, exported, "swap-if", "swap-rows", "static-if")
    before = trial._passed.cache_info().misses
    tried(exported.bundle, exported, "swap-if", "swap-rows", "static-if")
    assert trial._passed.cache_info().misses == before


def test_a_domain_with_a_patch_passes(fleet: Fleet) -> None:
    tried(fleet["tuned"].bundle, fleet["tuned"])


def test_other_answers_than_the_golden_ones_are_not_judged_here(
    fleet: Fleet, tmp_path: Path
) -> None:
    path = altered.with_graph(fleet["first"], tmp_path, altered.ignored_slot)
    tried(path, fleet["first"])
    with Runner(fleet["first"].backbone) as runner, pytest.raises(SelftestError, match="golden"):
        runner.load(path)


def test_an_examination_judges_them_and_says_what_it_ran_on(
    fleet: Fleet, tmp_path: Path, runner: Runner
) -> None:
    """So that a program without onnxruntime can install a domain as a runner does."""
    exported = fleet["first"]
    artefact = bundle.open_backbone(exported.backbone)
    opened = bundle.open_bundle(exported.bundle)
    tested_with = trial.examine(exported.bundle, read_release(opened), artefact, "swap-if")
    runner.install(exported.bundle, tmp_path / "installed")
    assert installed.read(tmp_path / "installed").tested_with == tested_with
    path = altered.with_graph(exported, tmp_path, altered.ignored_slot)
    release = read_release(bundle.open_bundle(path))
    tried(path, exported)
    with pytest.raises(SelftestError, match="golden answers"):
        trial.examine(path, release, artefact, "swap-if")


def test_a_trial_reaches_no_network() -> None:
    """Law: from a process that left, not even this machine's own addresses can be reached."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = (
            "from toolchain.core.isolation import leave_networks\n"
            "import socket, sys\n"
            "if not leave_networks(): sys.exit(3)\n"
            f"socket.create_connection(('127.0.0.1', {port}), timeout=5)\n"
        )
        ended = subprocess.run(
            [sys.executable, "-c", program], check=False, capture_output=True, timeout=60
        )
    if ended.returncode == 3:
        pytest.skip("this system lets no process leave its networks")
    assert b"Network is unreachable" in ended.stderr
    assert "leave_networks()" in trial._PROGRAM


def test_a_constant_of_gigabytes_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    """Attack: two small constants make a size; the runtime folds the tensor of that size."""
    path = altered.with_graph(fleet["first"], tmp_path, altered.memory_bomb)
    with Runner(fleet["first"].backbone) as runner:
        with pytest.raises((BundleError, SelftestError)):
            runner.load(path)
        assert runner.domains == {}
        assert runner.load(fleet["first"].bundle).name == "toy_chirps"


@pytest.mark.parametrize("edit", [altered.endless, altered.endless_folding])
def test_work_without_end_is_stopped(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: altered.Edit
) -> None:
    """Attack: neither making a session nor one operator looks at a time limit."""
    monkeypatch.setattr(trial, "START_S", 1.0)
    monkeypatch.setattr(trial, "TEST_S", 1.0)
    path = altered.with_graph(fleet["first"], tmp_path, edit)
    before = children()
    with pytest.raises(BundleError, match="limits on memory and time, and it was stopped after 2"):
        tried(path, fleet["first"])
    assert not children() - before


def test_too_little_memory_is_an_error_and_not_the_end(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "BASE_BYTES", 1)
    monkeypatch.setattr(trial, "PER_BYTE", 0)
    with pytest.raises((BundleError, SelftestError)):
        tried(fleet["every"].bundle, fleet["every"], "swap-rows")


def sized(exported: Exported, *, flops: int, side: int = 1) -> BackboneArtefact:
    """The toy's backbone, whose manifest tells of other blocks."""
    artefact = bundle.open_backbone(exported.backbone)
    blocks = tuple(
        replace(block, flops=flops, shape_out=(64, side, side))
        for block in artefact.manifest.blocks
    )
    return replace(artefact, manifest=replace(artefact.manifest, blocks=blocks))


def test_a_large_backbone_has_the_time_and_memory_that_it_takes(fleet: Fleet) -> None:
    """A legitimate net of 60 G multiply-adds needs more than minutes on a slow board."""
    large, small = sized(fleet["first"], flops=20 * 10**9), sized(fleet["first"], flops=1000)
    cases, blocks = 16, len(large.manifest.blocks)
    seconds = computing_seconds(blocks * 20 * 10**9, cases)
    assert seconds == blocks * 20e9 * cases / SLOWEST_PER_S > 1000
    assert trial._seconds(large, 0, seconds) > seconds
    # The backbone's weights are read first, however long that takes.
    assert trial._seconds(large, 10**9, seconds) >= trial._seconds(large, 0, seconds) + 100
    wide = sized(fleet["first"], flops=1000, side=512)
    free = available_bytes()
    assert free is not None
    extra = trial._memory_bytes(wide, 0) - trial._memory_bytes(small, 0)
    assert extra >= min(16 * 64 * 512**2 * 4, free - trial._memory_bytes(small, 0)) - (1 << 20)


def test_a_bundle_cannot_ask_for_more_than_its_backbone_needs(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attack: a small bundle that names a day for its self-test, on a device with little memory."""
    small = sized(fleet["first"], flops=1000)
    day = trial._seconds(small, 0, 86400.0)
    assert day == pytest.approx(trial.START_S + trial.TEST_S, abs=1)
    assert trial._seconds(small, 0, 1.0) == pytest.approx(trial.START_S + 1, abs=1)
    for free, limit in ((1 << 20, trial.LEAST_BYTES), (512 << 20, 512 << 20)):
        monkeypatch.setattr(trial, "available_bytes", lambda free=free: free)
        assert trial._memory_bytes(small, 0) == limit
    monkeypatch.setattr(trial, "available_bytes", lambda: None)
    assert trial._memory_bytes(small, 0) >= trial.BASE_BYTES


def test_nobody_waits_for_a_trial(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: while a hostile graph is tried, other domains load and answer; no clock is asked."""
    monkeypatch.setattr(trial, "START_S", 600.0)
    path = altered.with_graph(fleet["da2"], tmp_path, altered.endless_folding)
    errors: list[Exception] = []

    def hostile(runner: Runner) -> None:
        try:
            runner.load(path, name="hostile")
        except BundleError as err:
            errors.append(err)

    with Runner(fleet["first"].backbone, sessions=2) as runner:
        runner.load(fleet["first"].bundle, name="first")
        thread = threading.Thread(target=hostile, args=(runner,))
        before = children()
        thread.start()
        until(lambda: bool(children() - before))
        try:
            runner.load(fleet["next"].bundle, name="next", selftest=False)
            runner.load(fleet["wide"].bundle, name="wide", selftest=False)
            assert set(runner.domains) == {"first", "next", "wide"}
            assert runner.infer(tensor(2), "wide").logits.shape[0] == 2
            assert thread.is_alive()
        finally:
            for pid in children() - before:
                os.kill(pid, signal.SIGKILL)
            thread.join()
        assert "ended with SIGKILL" in str(errors[0])
        assert set(runner.domains) == {"first", "next", "wide"}


def test_a_bundle_that_was_exchanged_meanwhile_is_refused(fleet: Fleet) -> None:
    other: Release = read_release(bundle.open_bundle(fleet["coarse"].bundle))
    artefact = bundle.open_backbone(fleet["coarse"].backbone)
    with pytest.raises(BundleError, match="expected the release"):
        trial.prove(fleet["next"].bundle, other, artefact, ["swap-if"])


def test_nothing_is_imported_from_the_working_directory(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('imported')")
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported')")
    domain = fleet["head"]
    monkeypatch.chdir(tmp_path)
    tried(domain.bundle, domain)


def test_nothing_is_left_in_the_folder_for_temporary_files(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a patch, whose weights stand there while a session is made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tried(fleet["masked"].bundle, fleet["masked"])
    assert list(tmp_path.iterdir()) == []


def test_without_a_python_to_start_it_is_an_error_of_ours(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nosuch/python")
    with pytest.raises(Exception, match="cannot start /nosuch/python"):
        tried(fleet["beside"].bundle, fleet["beside"])

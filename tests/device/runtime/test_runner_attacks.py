"""Bundles that lie, damaged files and exchanged ones: each is a named error, the others go on."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import altered
from tests.support.damage import repacked, with_slots
from tests.support.drawn import same, tensor
from tests.support.exported import Exported, Fleet
from toolchain import bundle
from toolchain.bundle.golden import Golden, read_golden
from toolchain.core.errors import (
    BackboneMismatchError,
    BundleError,
    Da3Error,
    SelftestError,
    SessionLimitError,
    StorageError,
)
from toolchain.device import Runner
from toolchain.export.graph.names import SLOTS_FILE

GOLDEN = "golden.safetensors"
Attack = Callable[[Fleet, Path], Path]


@pytest.fixture
def serving(runner: Runner, fleet: Fleet) -> Runner:
    """A runner that serves a domain of the name that the attacks bear."""
    runner.load(fleet["next"].bundle)
    return runner


def refused(serving: Runner, path: Path, error: type[Da3Error], message: str) -> None:
    """Loading and replacing raise; what was served is served on, and nothing more is held."""
    before = serving.infer(tensor(3))
    domains = serving.domains
    with pytest.raises(error, match=message):
        serving.load(path, name="another")
    with pytest.raises(error, match=message):
        serving.replace(path, name="toy_chirps")
    assert serving.domains == domains
    assert serving.facts.sessions == 1
    assert same(serving.infer(tensor(3)).logits, before.logits)


def test_a_bundle_for_another_backbone(serving: Runner, fleet: Fleet) -> None:
    refused(serving, fleet["foreign"].bundle, BackboneMismatchError, "the backbone has")


@pytest.mark.parametrize("keep", [0, 1, 511, 512, 5000, -1])
def test_a_truncated_bundle(serving: Runner, fleet: Fleet, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.da3b"
    path.write_bytes(fleet["first"].bundle.read_bytes()[:keep])
    refused(serving, path, BundleError, r"a\.da3b")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_one_changed_byte_of_a_bundle(
    runner: Runner, fleet: Fleet, tmp_path: Path, data: st.DataObject
) -> None:
    """Law: any byte, any other value; nothing of it is loaded."""
    whole = bytearray(fleet["first"].bundle.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "a.da3b"
    path.write_bytes(whole)
    with pytest.raises(BundleError):
        runner.load(path)
    assert runner.domains == {}


def test_a_bundle_that_is_not_there_or_no_file(serving: Runner, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("nothing", "pipe", ""):
        refused(serving, tmp_path / name, StorageError, "expected|no such|cannot read")


def slots_of_another(fleet: Fleet, folder: Path) -> Path:
    """Right names, shapes and digests; but they are those of another release."""
    slots = bundle.open_bundle(fleet["next"].bundle).blob(SLOTS_FILE)
    return repacked(fleet["first"], folder, {SLOTS_FILE: slots})


def one_slot_moved(fleet: Fleet, folder: Path) -> Path:
    def edit(slots: dict[str, Any]) -> None:
        slots["head.bias"][0] += 1

    return with_slots(fleet["first"], folder, edit)


def a_gate_closed_for_good(fleet: Fleet, folder: Path) -> Path:
    def edit(slots: dict[str, Any]) -> None:
        slots["block02.gate.bias"] -= 100

    return with_slots(fleet["first"], folder, edit)


def with_golden(exported: Exported, folder: Path, change: Callable[[Golden], Golden]) -> Path:
    golden = read_golden(bundle.open_bundle(exported.bundle).blob(GOLDEN), GOLDEN)
    return repacked(exported, folder, {GOLDEN: change(golden).to_bytes()})


def golden_logits_moved(fleet: Fleet, folder: Path) -> Path:
    return with_golden(fleet["first"], folder, lambda g: replace(g, logits=g.logits + 1))


def golden_pictures_turned(fleet: Fleet, folder: Path) -> Path:
    return with_golden(fleet["first"], folder, lambda g: replace(g, pixels=255 - g.pixels))


def golden_cases_exchanged(fleet: Fleet, folder: Path) -> Path:
    def roll(golden: Golden) -> Golden:
        return replace(golden, logits=np.roll(golden.logits, 1, axis=0))

    return with_golden(fleet["first"], folder, roll)


def another_preprocessing(fleet: Fleet, folder: Path) -> Path:
    def change(manifest: Any) -> Any:
        return replace(manifest, preprocess=replace(manifest.preprocess, mean=(0.1, 0.5, 0.5)))

    return repacked(fleet["first"], folder, change=change)


FAIL_THE_TEST: list[Attack] = [
    slots_of_another,
    one_slot_moved,
    a_gate_closed_for_good,
    golden_logits_moved,
    golden_pictures_turned,
    golden_cases_exchanged,
    another_preprocessing,
]


@pytest.mark.parametrize("attack", FAIL_THE_TEST, ids=[a.__name__ for a in FAIL_THE_TEST])
@pytest.mark.parametrize("form", ["if", "rows", "static"])
def test_what_is_resealed_and_answers_otherwise_fails_the_self_test(
    artefact: Path, fleet: Fleet, tmp_path: Path, attack: Attack, form: Any
) -> None:
    path = attack(fleet, tmp_path)
    options = {"flavour": "static"} if form == "static" else {"form": form}
    with Runner(artefact, **options) as made:
        with pytest.raises(SelftestError, match="expected the golden answers"):
            made.load(path)
        assert made.domains == {}


@pytest.mark.parametrize("attack", FAIL_THE_TEST, ids=[a.__name__ for a in FAIL_THE_TEST])
def test_a_failed_self_test_changes_nothing(
    serving: Runner, fleet: Fleet, tmp_path: Path, attack: Attack
) -> None:
    refused(serving, attack(fleet, tmp_path), SelftestError, "expected the golden answers")


@pytest.mark.parametrize("edit", [altered.ignored_slot, altered.fewer_gates, altered.fewer_logits])
def test_a_graph_that_answers_otherwise_fails_the_self_test(
    runner: Runner, fleet: Fleet, tmp_path: Path, edit: altered.Edit
) -> None:
    """On its own session; on a loaded one the graph that is there is run instead."""
    path = altered.with_graph(fleet["first"], tmp_path, edit)
    with pytest.raises(SelftestError):
        runner.load(path)
    assert runner.domains == {}
    assert runner.facts.sessions == 0, "a session that failed is nobody's spare one"
    assert runner.load(fleet["first"].bundle).name == "toy_chirps"


@pytest.mark.parametrize("other", ["wide", "da2", "head"])
@pytest.mark.parametrize("name", ["swap-if", "static-if"])
def test_a_graph_of_another_domain_is_refused(
    artefact: Path, fleet: Fleet, tmp_path: Path, other: str, name: str
) -> None:
    files = {f"{name}.onnx": altered.graph_of(fleet[other], name)}
    path = repacked(fleet["first"], tmp_path, files)
    with Runner(artefact, flavour=name.removesuffix("-if")) as made:  # type: ignore[arg-type]
        with pytest.raises((BundleError, SelftestError)):
            made.load(path)
        assert made.domains == {}


def test_a_failed_graph_does_not_stay_for_the_next_domain(
    runner: Runner, fleet: Fleet, tmp_path: Path
) -> None:
    """Attack: a session that failed must not serve another domain that fits it, tested or not."""
    path = altered.with_graph(fleet["first"], tmp_path, altered.ignored_slot)
    with pytest.raises(SelftestError):
        runner.load(path)
    domain = runner.load(fleet["first"].bundle, selftest=False)
    with Runner(fleet["first"].backbone) as fresh:
        fresh.load(fleet["first"].bundle)
        assert same(runner.infer(tensor(2)).logits, fresh.infer(tensor(2)).logits)
    assert domain.name == "toy_chirps"


WHITE = np.full((2, 3, 12, 12), 9, np.float32)


def test_a_graph_that_lies_computes_no_other_domain(
    artefact: Path, fleet: Fleet, tmp_path: Path
) -> None:
    """Attack: a graph with every slot of the good one's, which passes its self-test.

    It was loaded before the others, is unloaded again, and they are replaced by themselves.
    """
    path = altered.with_graph(fleet["first"], tmp_path, altered.lies_on_white)
    with Runner(artefact) as alone:
        alone.load(fleet["next"].bundle)
        expected = alone.infer(WHITE).logits
    with Runner(artefact, sessions=2) as made:
        made.load(path, name="evil")
        assert (made.infer(WHITE).logits[:, 0] > 500).all(), "the lie itself"
        made.load(fleet["next"].bundle, name="good")
        assert same(made.infer(WHITE, "good").logits, expected)
        made.unload("evil")
        assert same(made.infer(WHITE, "good").logits, expected)
        made.replace(fleet["next"].bundle, name="good")
        assert same(made.infer(WHITE, "good").logits, expected)
    with Runner(artefact) as made:
        made.load(path, name="evil", selftest=False)
        with pytest.raises(SessionLimitError, match="another one, though its slots are alike"):
            made.load(fleet["next"].bundle, selftest=False)


def test_gates_that_a_manifest_names_wrongly_are_wrong_for_its_own_domain_alone(
    runner: Runner, fleet: Fleet, tmp_path: Path
) -> None:
    """Attack: a true graph, beside a manifest with its blocks in another order."""

    def change(manifest: Any) -> Any:
        return replace(manifest, gates=replace(manifest.gates, blocks=manifest.gates.blocks[::-1]))

    path = repacked(fleet["first"], tmp_path, change=change)
    assert runner.load(path, name="evil", selftest=False).gates == ("block02", "block00")
    good = runner.load(fleet["always"].bundle, name="good")
    assert (good.session, good.gates) == (0, ("block00", "block02"))
    images = tensor(8)
    gates = runner.infer(images, "good").gates
    assert gates[:, 0].all()
    assert not gates[:, 1].all()


def test_weights_that_are_gone_are_an_error_of_ours(
    artefact: Path, fleet: Fleet, tmp_path: Path
) -> None:
    """With a trial, whose limits depend on their size, and for a session that has no place."""
    path = Path(shutil.copytree(artefact, tmp_path / artefact.name))
    with Runner(path) as runner:
        loaded = runner.load(fleet["first"].bundle)
        (path / "weights.safetensors").unlink()
        with pytest.raises(SessionLimitError, match="would take about"):
            runner.load(fleet["wide"].bundle)
        runner.unload(loaded.name)
        for name in ("first", "coarse"):
            with pytest.raises(BundleError):
                runner.load(fleet[name].bundle)


def test_a_graph_that_never_ends_fails_within_the_bundles_own_limit(
    runner: Runner, fleet: Fleet, tmp_path: Path
) -> None:
    path = altered.with_graph(fleet["first"], tmp_path, altered.endless)

    def change(manifest: Any) -> Any:
        return replace(manifest, selftest=replace(manifest.selftest, time_limit_s=0.2))

    endless = bundle.open_bundle(path).blob("swap-if.onnx")
    path = repacked(fleet["first"], tmp_path, {"swap-if.onnx": endless}, change)
    with pytest.raises(SelftestError, match=r"stopped after its limit of 0\.2 s"):
        runner.load(path)


@pytest.mark.parametrize("whole", [True, False], ids=["renamed", "written"])
def test_a_bundle_exchanged_on_disk_while_it_is_loaded_is_one_release_or_an_error(
    runner: Runner, fleet: Fleet, tmp_path: Path, whole: bool
) -> None:
    """One renamed over it is one of the two; one written over it may be refused; no mixture."""
    choices = [fleet[name].bundle.read_bytes() for name in ("first", "next")]
    known = {bundle.open_bundle(fleet[name].bundle).manifest_digest for name in ("first", "next")}
    path, done = tmp_path / "a.da3b", threading.Event()
    path.write_bytes(choices[0])

    def exchange() -> None:
        target = tmp_path / "next" if whole else path
        for data in itertools.cycle(choices):
            target.write_bytes(data)
            target.replace(path)
            if done.is_set():
                return

    writer = threading.Thread(target=exchange)
    runner.load(fleet["first"].bundle)
    writer.start()
    try:
        for _ in range(60):
            try:
                domain = runner.replace(path, name="toy_chirps")
            except (BundleError, StorageError):
                assert not whole
                continue
            assert domain.release in known
            assert runner.infer(tensor(1)).release == domain.release
    finally:
        done.set()
        writer.join()
    assert runner.replace(path, name="toy_chirps").release in known

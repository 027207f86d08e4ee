"""Training: the frozen law, resuming, interruption, and what makes it stop."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support import stripes
from toolchain.core.errors import (
    BelowHeadError,
    DivergedError,
    ExistsError,
    LockedError,
    StorageError,
    TrainingError,
    UsageError,
)
from toolchain.training.adapt.attached import AttachedModel, domain_state, weights_digest
from toolchain.training.adapt.checkpoint import read
from toolchain.training.data import DomainData
from toolchain.training.loop.destination import state_path
from toolchain.training.loop.progress import Quiet, Status
from toolchain.training.loop.state import load_state
from toolchain.training.loop.training import TrainReport, train

STEPS_PER_EPOCH = 90 // 16


class Recorder(Quiet):
    """Keeps every status and does something at one step, or as a phase begins."""

    def __init__(self, at: int | str | None = None, do: Callable[[], None] = lambda: None) -> None:
        self.at, self.do = at, do
        self.phases: list[tuple[str, int, int]] = []
        self.steps: list[Status] = []
        self.epochs: list[Status] = []
        self.closed = 0

    def phase(self, phase: str, done: int, total: int) -> None:
        self.phases.append((phase, done, total))
        if (phase, done) == (self.at, 0):
            self.do()

    def step(self, status: Status) -> None:
        self.steps.append(status)
        if status.step == self.at:
            self.do()

    def epoch(self, status: Status) -> None:
        self.epochs.append(status)

    def close(self) -> None:
        self.closed += 1


Finished = tuple[AttachedModel, TrainReport, Recorder, str]


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def weights(model: AttachedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in domain_state(model).items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A model trained without interruption, and its report."""
    out = tmp_path_factory.mktemp("train") / "deep" / "stripes"
    model, recorder = stripes.model(), Recorder()
    digest = weights_digest(model)
    report = train(model, stripes.data(), stripes.recipe(), out=out, progress=recorder)
    return model, report, recorder, digest


def test_the_backbone_stays_frozen(finished: Finished) -> None:
    """Law: the backbone's digest is the same before and after, and no parameter has a gradient."""
    model, report, _, digest = finished
    assert weights_digest(model) == digest == report.checkpoint.info.backbone.weights_digest
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


def test_a_backbone_in_training_mode_stays_frozen(tmp_path: Path) -> None:
    model = stripes.model()
    model.backbone.train()
    digest = weights_digest(model)
    train(model, stripes.data(), stripes.recipe(epochs=1), out=tmp_path / "out")
    assert weights_digest(model) == digest
    assert int(model.backbone.get_buffer("stem.1.num_batches_tracked")) == 0


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainReport, Recorder]:
    """A training of enough steps for adaptors and then gates to learn."""
    out, recorder = tmp_path_factory.mktemp("learnt") / "stripes", Recorder()
    recipe = stripes.recipe(epochs=40)
    return train(stripes.model(), stripes.data(), recipe, out=out, progress=recorder), recorder


def test_it_learns_and_keeps_the_budget(learnt: tuple[TrainReport, Recorder]) -> None:
    report, recorder = learnt
    assert report.evaluation.accuracy >= 0.9
    assert recorder.epochs[-1].loss < recorder.epochs[0].loss
    assert report.evaluation.executed_share == pytest.approx(0.6, abs=0.1)


def test_its_gates_decide(learnt: tuple[TrainReport, Recorder]) -> None:
    report, _ = learnt
    assert report.evaluation.gate_rates
    assert all(0.05 <= rate <= 0.95 for rate in report.evaluation.gate_rates.values())


def test_progress_hears_of_every_step_and_epoch(finished: Finished) -> None:
    _, report, recorder, _ = finished
    assert [status.step for status in recorder.steps] == list(range(1, 3 * STEPS_PER_EPOCH + 1))
    assert [status.epoch for status in recorder.epochs] == [1, 2, 3]
    assert recorder.closed == 1
    assert recorder.epochs[-1].remaining_s == 0
    assert report.steps == 3 * STEPS_PER_EPOCH


def test_progress_hears_of_every_phase_from_its_first_picture(finished: Finished) -> None:
    phases = finished[2].phases
    assert list(dict.fromkeys(name for name, _, _ in phases)) == ["head", "steps", "test", "gates"]
    # Half of a step's 16 at once: 90 pictures to train on and 60 to test with, then the 60 again.
    head = [done for name, done, total in phases if name == "head" and total == 150]
    assert head[:3] == [0, 8, 16]
    assert head[-1] == 150
    assert [done for name, done, _ in phases if name == "test"] == [
        *range(0, 60, 8),
        60,
    ]


def test_a_finished_training_leaves_the_checkpoint_and_no_state(finished: Finished) -> None:
    _, report, _, _ = finished
    assert sorted(path.name for path in report.folder.parent.iterdir()) == ["stripes"]
    assert read(report.folder).info == report.checkpoint.info
    metrics = report.checkpoint.info.metrics
    assert metrics.accuracy == report.evaluation.accuracy
    assert metrics.head_accuracy is not None
    assert set(metrics.gate_rates) == {"block00", "block02"}


def test_the_same_training_ends_in_the_same_bits(finished: Finished, tmp_path: Path) -> None:
    """Law: weights are a function of recipe, data and backbone; the global seed has no part."""
    torch.manual_seed(99)
    again = stripes.model()
    train(again, stripes.data(), stripes.recipe(), out=tmp_path / "out")
    assert same(weights(again), weights(finished[0]))


def test_another_seed_ends_elsewhere(finished: Finished, tmp_path: Path) -> None:
    other = stripes.model()
    train(other, stripes.data(), stripes.recipe(seed=1), out=tmp_path / "out")
    assert not same(weights(other), weights(finished[0]))


@pytest.mark.parametrize("at", [1, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 2, 3 * STEPS_PER_EPOCH])
def test_interrupted_and_resumed_equals_uninterrupted(
    finished: Finished, tmp_path: Path, at: int
) -> None:
    """Law: Ctrl-C after any step, then resume, gives the same bits; in an epoch and at its end."""
    out, data, recipe = tmp_path / "out", stripes.data(), stripes.recipe()
    with pytest.raises(TrainingError, match=f"after step {at} of 15") as caught:
        train(stripes.model(), data, recipe, out=out, progress=Recorder(at, press_ctrl_c))
    assert "resume" in caught.value.fix
    assert not out.exists()
    model = stripes.model(seed=0)
    report = train(model, data, recipe, out=out, resume=True)
    assert report.steps == 15 - at
    assert same(weights(model), weights(finished[0]))
    assert report.checkpoint.info.metrics == finished[1].checkpoint.info.metrics
    assert not state_path(out).exists()


def test_a_crash_is_resumed_from_the_last_epoch(finished: Finished, tmp_path: Path) -> None:
    def crash() -> None:
        raise OSError("the power went")

    out, data, recipe = tmp_path / "out", stripes.data(), stripes.recipe()
    recorder = Recorder(STEPS_PER_EPOCH + 3, crash)
    with pytest.raises(OSError, match="power"):
        train(stripes.model(), data, recipe, out=out, progress=recorder)
    assert recorder.closed == 1
    assert load_state(state_path(out)).step == STEPS_PER_EPOCH
    model = stripes.model()
    train(model, data, recipe, out=out, resume=True)
    assert same(weights(model), weights(finished[0]))


def test_the_state_is_saved_as_often_as_asked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    steps: list[int] = []

    def look() -> None:
        steps.append(load_state(state_path(out)).step)

    recorder = Recorder(4, look)
    train(
        stripes.model(),
        stripes.data(),
        stripes.recipe(epochs=1),
        out=out,
        save_every_s=0,
        progress=recorder,
    )
    assert steps == [3]


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    # Ignored where the tests run in the background.
    before = signal.getsignal(signal.SIGINT)

    def twice() -> None:
        press_ctrl_c()
        press_ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        train(
            stripes.model(),
            stripes.data(),
            stripes.recipe(),
            out=tmp_path / "out",
            progress=Recorder(2, twice),
        )
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_is_a_request_to_stop_like_ctrl_c(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    out = tmp_path / "out"
    recorder = Recorder(2, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(TrainingError, match="after step 2 of 15"):
        train(stripes.model(), stripes.data(), stripes.recipe(), out=out, progress=recorder)
    assert load_state(state_path(out)).step == 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_while_the_head_is_fitted_stops_at_the_next_batch(tmp_path: Path) -> None:
    recorder = Recorder("head", lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(TrainingError, match="stopped before the first step") as caught:
        train(
            stripes.model(),
            stripes.data(),
            stripes.recipe(),
            out=tmp_path / "out",
            progress=recorder,
        )
    assert caught.value.fix == "train from the start"
    assert recorder.phases == [("head", 0, 150)]
    assert recorder.closed == 1
    assert not list(tmp_path.iterdir())


def test_a_signal_while_it_tests_leaves_a_state_that_is_only_tested(
    finished: Finished, tmp_path: Path
) -> None:
    out, data, recipe = tmp_path / "out", stripes.data(), stripes.recipe()
    recorder = Recorder("test", lambda: signal.raise_signal(signal.SIGHUP))
    with pytest.raises(TrainingError, match=r"after step 15 of 15 \(epoch 3 of 3\)"):
        train(stripes.model(), data, recipe, out=out, progress=recorder)
    model = stripes.model()
    report = train(model, data, recipe, out=out, resume=True)
    assert report.steps == 0
    assert same(weights(model), weights(finished[0]))


def test_a_hang_up_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        recorder = Recorder(1, lambda: signal.raise_signal(signal.SIGHUP))
        recipe = stripes.recipe(epochs=1)
        report = train(
            stripes.model(), stripes.data(), recipe, out=tmp_path / "out", progress=recorder
        )
    finally:
        signal.signal(signal.SIGHUP, before)
    assert report.steps == STEPS_PER_EPOCH


def test_a_crash_in_the_first_epoch_does_not_fit_the_head_again(
    finished: Finished, tmp_path: Path
) -> None:
    def crash() -> None:
        raise OSError("the power went")

    out, data, recipe = tmp_path / "out", stripes.data(), stripes.recipe()
    with pytest.raises(OSError, match="power"):
        train(stripes.model(), data, recipe, out=out, progress=Recorder(2, crash))
    assert load_state(state_path(out)).step == 0
    model, recorder = stripes.model(), Recorder()
    train(model, data, recipe, out=out, resume=True, progress=recorder)
    assert "head" not in [name for name, _, _ in recorder.phases]
    assert same(weights(model), weights(finished[0]))


@pytest.mark.parametrize(("resume", "overwrite"), [(False, False), (True, False), (False, True)])
def test_two_trainings_into_one_folder_do_not_meet(
    finished: Finished, tmp_path: Path, resume: bool, overwrite: bool
) -> None:
    """Law: a second training is refused, whatever it asks for, and the first ends as if alone."""
    out, data = tmp_path / "out", stripes.data()
    refused: list[LockedError] = []

    def second() -> None:
        with pytest.raises(LockedError) as caught:
            other = stripes.recipe(seed=7)
            train(stripes.model(), data, other, out=out, resume=resume, overwrite=overwrite)
        refused.append(caught.value)

    model = stripes.model()
    train(model, data, stripes.recipe(), out=out, progress=Recorder(7, second))
    assert f"process {os.getpid()} on " in refused[0].message
    assert same(weights(model), weights(finished[0]))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what is resident")
@pytest.mark.parametrize(("method", "before"), [("da3", "trial"), ("head", "search")])
def test_no_phase_takes_more_resident_memory_than_was_told(method: str, before: str) -> None:
    """Law: the process's own peak is what was told.

    It holds for the head's fit, the steps and the test, and for what comes before them: the export
    for trial, and sparse's search.
    """
    command = [sys.executable, "-m", "tests.support.peak_of_training", method, before]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    sizes = {name: int(size) for name, size in map(str.split, done.stdout.splitlines())}
    parts = {before: [before], "training": ["head", "steps", "test"]}
    assert list(sizes) == [f"told_{before}", before, "told_training", *parts["training"]]
    for part, phases in parts.items():
        limit = sizes[f"told_{part}"]
        for name in phases:
            assert sizes[name] <= limit, f"{name}: {sizes[name]} bytes, told {limit}"
        # Most of it is really used: a figure that is far too large would hold anything.
        assert max(sizes[name] for name in phases) > 0.5 * limit


def test_it_trains_outside_the_main_thread(tmp_path: Path) -> None:
    done: list[TrainReport] = []

    def work() -> None:
        done.append(
            train(stripes.model(), stripes.data(), stripes.recipe(epochs=1), out=tmp_path / "out")
        )

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done[0].folder.is_dir()


def interrupted(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    recorder = Recorder(2, press_ctrl_c)
    with pytest.raises(TrainingError):
        train(stripes.model(), stripes.data(), stripes.recipe(), out=out, progress=recorder)
    return out


def test_resuming_with_another_recipe_names_each_difference(tmp_path: Path) -> None:
    out = interrupted(tmp_path)
    other = stripes.recipe(lr=0.02, epochs=5)
    with pytest.raises(TrainingError, match=r"train\.epochs: 3 then, 5 now") as caught:
        train(stripes.model(), stripes.data(), other, out=out, resume=True)
    assert "train.lr: 0.01 then, 0.02 now" in caught.value.message
    assert state_path(out).exists()


def test_words_of_the_recipe_may_change_before_resuming(tmp_path: Path) -> None:
    out = interrupted(tmp_path)
    renamed = dataclasses.replace(stripes.recipe(), title="Another title")
    report = train(stripes.model(), stripes.data(), renamed, out=out, resume=True)
    assert report.checkpoint.info.title == "Another title"


def test_resuming_with_another_backbone_or_data_names_it(tmp_path: Path) -> None:
    out = interrupted(tmp_path)
    with pytest.raises(TrainingError, match="backbone's weights_digest: sha256:"):
        train(stripes.model(seed=3), stripes.data(), stripes.recipe(), out=out, resume=True)
    with pytest.raises(TrainingError, match="data's digest: sha256:"):
        train(stripes.model(), stripes.data(5), stripes.recipe(), out=out, resume=True)


def test_resuming_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no such file"):
        train(stripes.model(), stripes.data(), stripes.recipe(), out=tmp_path / "out", resume=True)


@pytest.mark.parametrize("damage", ["cut", "flip", "other"])
def test_a_damaged_state_is_refused(tmp_path: Path, damage: str) -> None:
    path = state_path(interrupted(tmp_path))
    whole = bytearray(path.read_bytes())
    if damage == "flip":
        whole[-100] ^= 4
    damaged: dict[str, bytes] = {"cut": bytes(whole[:-9]), "flip": bytes(whole), "other": b"{}"}
    path.write_bytes(damaged[damage])
    with pytest.raises(TrainingError, match="damaged or foreign"):
        train(stripes.model(), stripes.data(), stripes.recipe(), out=tmp_path / "out", resume=True)


def test_what_is_there_is_not_overwritten_unasked(tmp_path: Path) -> None:
    out = interrupted(tmp_path)
    arguments = stripes.data(), stripes.recipe(epochs=1)
    with pytest.raises(ExistsError, match="half-done") as caught:
        train(stripes.model(), *arguments, out=out)
    assert "resume" in caught.value.fix
    train(stripes.model(), *arguments, out=out, overwrite=True)
    with pytest.raises(ExistsError, match="existing one"):
        train(stripes.model(), *arguments, out=out)
    before = read(out).info.tensors_sha256
    train(stripes.model(), stripes.data(), stripes.recipe(seed=7), out=out, overwrite=True)
    assert read(out).info.tensors_sha256 != before


def test_a_folder_that_cannot_be_made_is_told_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    recorder = Recorder()
    with pytest.raises(StorageError, match="cannot make"):
        train(
            stripes.model(),
            stripes.data(),
            stripes.recipe(),
            out=tmp_path / "file" / "out",
            progress=recorder,
        )
    assert not recorder.steps


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that not even root writes in")
def test_a_folder_that_takes_no_file_is_told_before_the_first_step() -> None:
    recorder = Recorder()
    out = Path("/proc/self/out")
    with pytest.raises(StorageError, match="cannot write in /proc/self"):
        train(stripes.model(), stripes.data(), stripes.recipe(), out=out, progress=recorder)
    assert not recorder.steps


def test_a_state_that_cannot_be_removed_is_a_storage_error(tmp_path: Path) -> None:
    out = tmp_path / "out"
    state_path(out).mkdir()
    with pytest.raises(StorageError, match="cannot remove"):
        train(stripes.model(), stripes.data(), stripes.recipe(), out=out, overwrite=True)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    out, model = tmp_path / "out", stripes.model()

    def poison() -> None:
        with torch.no_grad():
            model.domain.get_parameter("block00.adaptor.expand.weight").fill_(float("nan"))

    recorder = Recorder(STEPS_PER_EPOCH + 1, poison)
    with pytest.raises(DivergedError, match="finite loss, got nan; the last good") as caught:
        train(model, stripes.data(), stripes.recipe(), out=out, progress=recorder)
    assert "train.lr" in caught.value.fix
    state = load_state(state_path(out))
    assert state.step == STEPS_PER_EPOCH
    assert all(bool(tensor.isfinite().all()) for tensor in state.domain.values())


def test_weights_that_are_not_finite_do_not_replace_a_good_state(tmp_path: Path) -> None:
    out, model = tmp_path / "out", stripes.model()

    def poison() -> None:
        with torch.no_grad():
            model.domain.get_parameter("block00.adaptor.expand.weight").fill_(float("inf"))

    recorder = Recorder(2 * STEPS_PER_EPOCH, poison)
    with pytest.raises(DivergedError, match=r"NaN or Inf in block00\.adaptor\.expand"):
        train(model, stripes.data(), stripes.recipe(), out=out, progress=recorder)
    assert load_state(state_path(out)).step == STEPS_PER_EPOCH


def test_a_training_that_ends_below_its_head_says_so_and_keeps_its_checkpoint(
    learnt: tuple[TrainReport, Recorder], tmp_path: Path
) -> None:
    assert learnt[0].fault is None
    recipe = stripes.recipe(epochs=1, lr=30.0)
    report = train(stripes.model(), stripes.data(), recipe, out=tmp_path / "out")
    assert isinstance(report.fault, BelowHeadError | DivergedError)
    assert "lower train.lr" in report.fault.fix
    assert "(now 30)" in report.fault.fix
    assert report.folder.is_dir()


def test_what_can_never_be_packed_is_refused_before_the_first_step(tmp_path: Path) -> None:
    data = stripes.data()
    names = DomainData(data.train, data.test, ("x" * 201, *data.classes[1:]))
    recorder = Recorder()
    with pytest.raises(UsageError, match=r"cannot be packed: .*\n.*classes\[0\]"):
        train(stripes.model(), names, stripes.recipe(), out=tmp_path / "out", progress=recorder)
    assert not recorder.steps


@pytest.mark.parametrize("method", ["da2", "head"])
def test_the_other_methods_train_too(tmp_path: Path, method: str) -> None:
    recipe = stripes.recipe(method=method, epochs=40)
    report = train(stripes.model(method=method), stripes.data(), recipe, out=tmp_path / "out")
    assert report.evaluation.executed_share == 1
    assert report.evaluation.gate_rates == {}
    assert report.evaluation.accuracy >= 0.8


def test_a_model_for_other_data_is_refused_before_the_first_step(tmp_path: Path) -> None:
    other = DomainData(stripes.split("train", 9, 0), stripes.split("test", 9, 1), ("a", "b"))
    with pytest.raises(TrainingError, match="classes: 3 in the model, 2 wanted") as caught:
        train(stripes.model(method="da2"), other, stripes.recipe(), out=tmp_path / "out")
    assert "method: da2 in the model, da3 wanted" in caught.value.message
    assert not list(tmp_path.iterdir())


def test_a_backbone_that_someone_thawed_is_frozen_again(tmp_path: Path) -> None:
    model = stripes.model()
    model.backbone.requires_grad_(True)
    train(model, stripes.data(), stripes.recipe(epochs=1), out=tmp_path / "out")
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


def test_a_domain_smaller_than_a_batch_trains(tmp_path: Path) -> None:
    few = DomainData(stripes.split("train", 7, 0), stripes.split("test", 5, 1), stripes.CLASSES)
    report = train(stripes.model(), few, stripes.recipe(epochs=2), out=tmp_path / "out")
    assert report.steps == 2


def test_a_finished_training_says_that_it_is_finished(tmp_path: Path) -> None:
    recipe = stripes.recipe(epochs=1)
    train(stripes.model(), stripes.data(), recipe, out=tmp_path / "out")
    with pytest.raises(TrainingError, match="finished"):
        train(stripes.model(), stripes.data(), recipe, out=tmp_path / "out", resume=True)

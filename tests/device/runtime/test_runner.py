"""The runner: what it takes, what it answers, which domains it lets in, and what it refuses.

Sessions, threads, and bundles that lie have files of their own beside this one.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.device.conftest import ALL
from tests.support.drawn import pixels, same, tensor
from tests.support.exported import Fleet
from toolchain.core.errors import (
    DataError,
    LoadedError,
    TimeLimitError,
    UnknownNameError,
    UsageError,
)
from toolchain.device import Runner
from toolchain.device.runtime.answers import probabilities
from toolchain.pictures import preprocess

RELEASED = Path(__file__).parents[2] / "bundles"
LAWS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


# -- requests --------------------------------------------------------------------------------------


def test_every_kind_of_picture_has_the_same_answer(
    runner: Runner, fleet: Fleet, tmp_path: Path
) -> None:
    domain = runner.load(fleet["first"].bundle)
    (array,) = pixels(1)
    path = tmp_path / "a.png"
    Image.fromarray(array).save(path)
    ready = runner.prepare([array])
    kinds: list[Any] = [path, str(path), Image.fromarray(array), array, ready, ready[0]]
    answers = [runner.run(kind) for kind in kinds]
    assert all(same(one.logits, answers[0].logits) for one in answers)
    assert same(runner.infer(ready).logits[0], answers[0].logits)
    first = answers[0]
    assert first.label == domain.classes[first.index]
    assert (first.domain, first.release) == (domain.name, domain.release)
    assert tuple(first.gates) == domain.gates
    assert first.ms > 0


def test_answers_are_those_of_pytorch(runner: Runner, fleet: Fleet) -> None:
    import torch

    for name in ("first", "digits", "grey"):
        runner.load(fleet[name].bundle, name=name)
        images = tensor(8, 5)
        with torch.no_grad():
            expected = fleet[name].domain.model.trace(torch.from_numpy(images))
        outcome = runner.infer(images, name)
        assert expected.logits is not None
        assert np.allclose(outcome.logits, expected.logits.numpy(), atol=1e-4)
        for place, site in enumerate(runner.domains[name].gates):
            assert np.array_equal(outcome.gates[:, place], expected.gates[site].numpy()[:, 0] >= 0)


@LAWS
@given(st.sampled_from(ALL), st.integers(1, 6), st.integers(0, 1000))
def test_a_batch_is_its_pictures_one_by_one(
    wide_runner: Runner, name: str, count: int, seed: int
) -> None:
    """Law: run_batch == run each, bit for bit, as pictures, pixels and prepared tensors."""
    drawn = pixels(count, seed)
    singles = [wide_runner.run(array, name) for array in drawn]
    ready = wide_runner.prepare(drawn, name)
    batches: list[Any] = [drawn, list(drawn), ready]
    for batch in batches:
        answers = wide_runner.run_batch(batch, name)
        assert [one.label for one in answers] == [one.label for one in singles]
        assert [one.gates for one in answers] == [one.gates for one in singles]
        assert all(same(a.logits, b.logits) for a, b in zip(answers, singles, strict=True))
    outcome = wide_runner.infer(ready, name)
    assert same(outcome.logits, np.stack([one.logits for one in singles]))
    chances = probabilities(outcome.logits)
    assert np.allclose(chances.sum(axis=1), 1, atol=1e-6)


@LAWS
@given(st.integers(1, 6), st.integers(0, 1000))
def test_rows_answer_as_if_does(artefact: Path, fleet: Fleet, count: int, seed: int) -> None:
    """Law: the two forms agree; gates are compared where they do not stand on the threshold."""
    images = tensor(count, seed)
    answers = []
    for form in ("if", "rows"):
        with Runner(artefact, form=form) as made:
            made.load(fleet["first"].bundle)
            answers.append(made.infer(images))
    agree = (answers[0].gates == answers[1].gates).all(axis=1)
    assert agree.sum() >= count - 1
    assert np.allclose(answers[0].logits[agree], answers[1].logits[agree], atol=1e-4)


@pytest.mark.parametrize("name", ["bgr", "grey"])
def test_the_order_of_colours_is_the_domains_own(
    wide_runner: Runner, fleet: Fleet, name: str
) -> None:
    (array,) = pixels(1)
    expected = preprocess.tensor(fleet[name].domain.recipe.preprocess, array)
    plain = preprocess.tensor(fleet["first"].domain.recipe.preprocess, array)
    assert not same(expected, plain)
    answer = wide_runner.run(array, name)
    assert same(answer.logits, wide_runner.infer(expected, name).logits[0])
    assert same(wide_runner.prepare([array], name), expected)


@pytest.mark.parametrize(
    "bad",
    [
        pixels(1)[0].astype(np.int32),
        np.zeros((12, 12, 4), np.uint8),
        np.zeros((1, 3, 13, 13), np.float32),
        np.full((3, 12, 12), np.nan, np.float32),
        Path("nowhere.png"),
        None,
    ],
)
def test_a_bad_picture_is_refused_and_the_next_one_is_answered(
    wide_runner: Runner, bad: Any
) -> None:
    before = wide_runner.run(pixels(1)[0], "first")
    with pytest.raises(DataError):
        wide_runner.run(bad, "first")
    with pytest.raises(DataError):
        wide_runner.run_batch([pixels(1)[0], bad], "first")
    assert same(wide_runner.run(pixels(1)[0], "first").logits, before.logits)


def test_batches_are_limited(artefact: Path, fleet: Fleet) -> None:
    with Runner(artefact, max_batch=3) as made:
        made.load(fleet["first"].bundle)
        assert len(made.run_batch(pixels(3))) == 3
        for count in (0, 4):
            with pytest.raises(DataError, match=f"expected 1 to 3 pictures at once, got {count}"):
                made.run_batch(pixels(count))
            with pytest.raises(DataError, match="expected 1 to 3"):
                made.infer(tensor(count))
            with pytest.raises(DataError, match="expected 1 to 3"):
                made.prepare(list(pixels(count)))


def test_finite_values_that_overflow_are_refused_rather_than_answered(wide_runner: Runner) -> None:
    """Attack: 1e38 is finite; what becomes of it is NaN, which would close gates in silence."""
    huge = np.full((2, 3, 12, 12), 1e38, np.float32)
    huge[:, :, ::2] *= -3
    with pytest.raises(DataError, match="logits overflow"):
        wide_runner.infer(huge, "first")


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf])
def test_a_time_limit_that_cannot_be_meant_is_refused(wide_runner: Runner, seconds: float) -> None:
    with pytest.raises(UsageError, match="expected a time limit above 0"):
        wide_runner.run(pixels(1)[0], "first", time_limit_s=seconds)


def test_a_time_limit_stops_a_batch_and_the_session_lives_on(artefact: Path, fleet: Fleet) -> None:
    count = 20_000
    with Runner(artefact, max_batch=count) as made:
        made.load(fleet["first"].bundle)
        before = made.infer(tensor(2))
        images = np.broadcast_to(tensor(1), (count, 3, 12, 12))
        with pytest.raises(TimeLimitError, match=r"stopped after its limit of 0\.05 s"):
            made.infer(images, time_limit_s=0.05)
        assert same(made.infer(tensor(2), time_limit_s=60).logits, before.logits)


# -- names -----------------------------------------------------------------------------------------


def test_the_name_may_be_left_out_while_one_is_loaded(runner: Runner, fleet: Fleet) -> None:
    with pytest.raises(UsageError, match="expected the name of one of 0 loaded domains"):
        runner.run(pixels(1)[0])
    runner.load(fleet["first"].bundle)
    assert runner.run(pixels(1)[0]).domain == "toy_chirps"
    runner.load(fleet["digits"].bundle)
    with pytest.raises(UsageError, match="one of 2 loaded domains") as caught:
        runner.run(pixels(1)[0])
    assert caught.value.fix == "name one of: toy_chirps, toy_digits"


def test_an_unknown_domain_lists_the_nearest(runner: Runner, fleet: Fleet) -> None:
    runner.load(fleet["first"].bundle)
    calls: list[Any] = [runner.run, runner.run_batch, runner.infer, runner.prepare]
    for call in calls:
        with pytest.raises(UnknownNameError, match="did you mean toy_chirps") as caught:
            call(pixels(1), "toy_chrips")
        assert caught.value.exit_code == 2
    with pytest.raises(UnknownNameError):
        runner.unload("toy_chrips")
    with pytest.raises(UnknownNameError):
        runner.replace(fleet["digits"].bundle)


def test_a_name_is_taken_once_and_free_again_after_unloading(runner: Runner, fleet: Fleet) -> None:
    first = runner.load(fleet["first"].bundle)
    with pytest.raises(LoadedError, match="'toy_chirps' is loaded already") as caught:
        runner.load(fleet["next"].bundle)
    assert first.release in caught.value.message
    assert runner.domains == {"toy_chirps": first}
    runner.unload("toy_chirps")
    assert runner.domains == {}
    assert runner.load(fleet["next"].bundle).release != first.release


def test_one_bundle_under_two_names(runner: Runner, fleet: Fleet) -> None:
    one = runner.load(fleet["first"].bundle, name="red")
    two = runner.load(fleet["first"].bundle, name="blue")
    assert one.release == two.release
    assert (one.name, two.name) == ("red", "blue")
    assert runner.run(pixels(1)[0], "blue").domain == "blue"
    assert same(runner.infer(tensor(2), "red").logits, runner.infer(tensor(2), "blue").logits)
    runner.replace(fleet["next"].bundle, name="red")
    assert not same(runner.infer(tensor(2), "red").logits, runner.infer(tensor(2), "blue").logits)


HOSTILE = ["", "../up", "a/b", "a\0", "a\n", "-", "x" * 10_000, ".", "con\u202e"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_refused_and_not_repeated_at_length(
    runner: Runner, fleet: Fleet, name: str
) -> None:
    with pytest.raises(UsageError, match="expected a domain's name") as caught:
        runner.load(fleet["first"].bundle, name=name)
    assert len(str(caught.value)) < 400
    assert runner.domains == {}


def test_domains_are_a_snapshot(runner: Runner, fleet: Fleet) -> None:
    before = runner.domains
    domain = runner.load(fleet["first"].bundle)
    assert before == {}
    manifest = fleet["first"].report.manifest
    assert runner.domains == {"toy_chirps": domain}
    assert domain.classes == manifest.classes
    assert domain.slots_bytes > 0
    assert set(domain.seconds) == {"verify", "trial", "session", "selftest"}
    assert "selftest" not in runner.load(fleet["digits"].bundle, name="b", selftest=False).seconds


# -- what earlier versions wrote -------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(RELEASED.glob("*/*.da3b")) if [*path.parent.glob("backbone-*")]],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_every_released_bundle_runs_for_ever(path: Path, tmp_path: Path) -> None:
    """Law: it is verified, tried, self-tested and installed on the backbone of its time."""
    (backbone,) = path.parent.glob("backbone-*")
    with Runner(backbone, sessions=2) as runner:
        domain = runner.load(path)
        assert {"verify", "session", "selftest"} <= set(domain.seconds)
        answer = runner.infer(tensor(2), domain.name)
        assert answer.logits.shape == (2, len(domain.classes))
        runner.install(path, tmp_path / "installed")
        runner.replace(tmp_path / "installed", name=domain.name)
        again = runner.infer(tensor(2), domain.name)
        assert same(again.logits, answer.logits)

"""Many threads at once: the runner's invariant, as its file writes it down.

Every answer is that of exactly one release, bit for bit; nobody waits for a replacement; a release
is gone after its last request; no more sessions are in use than are allowed. A few seconds in the
normal run, a minute behind the marker ``full``.
"""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy.typing as npt
import pytest

from tests.support.drawn import same
from tests.support.exported import Fleet
from tests.support.storm import IMAGES, PATIENCE_S, Known, Storm, answer, answer_to_pictures
from toolchain.core.errors import ClosedError, UnknownNameError
from toolchain.device import Runner
from toolchain.device.runtime.answers import Outcome
from toolchain.device.runtime.ort.session import Session

UNDER_WAY = "under way"
# By the name that they are loaded under; ``digits`` has another class count than those it replaces.
RELEASES = {
    "toy_chirps": ("first", "next", "third", "digits"),
    "head": ("head",),
    "da2": ("da2",),
}


@pytest.fixture(scope="module")
def known(artefact: Path, fleet: Fleet) -> Known:
    """What each release says alone, bit for bit, to prepared tensors and to pictures."""
    answers: Known = {}
    for name in itertools.chain(*RELEASES.values()):
        with Runner(artefact) as made:
            domain = made.load(fleet[name].bundle)
            answers[domain.release, answer(made, domain.name)] = name
            answers[domain.release, answer_to_pictures(made, domain.name)] = name
    return answers


@pytest.mark.parametrize("seconds", [1, pytest.param(60, marks=pytest.mark.full)])
def test_every_answer_is_one_releases_own(
    artefact: Path, fleet: Fleet, known: Known, tmp_path: Path, seconds: int
) -> None:
    """Law: whatever happens at the same time, no answer mixes two releases."""
    with Runner(artefact, sessions=2) as runner:
        storm = Storm(runner, fleet, known, tmp_path, RELEASES)
        runner.load(fleet["first"].bundle, name="toy_chirps")

        def enough(storm: Storm) -> bool:
            many = len(storm.answers) > 10 * seconds and len(storm.exchanges) > seconds
            return many and storm.seen >= {"first", "next", "third", "digits"}

        storm.rage(seconds, enough)
        assert runner.facts.sessions <= 2
        assert enough(storm), (storm.seen, len(storm.answers), len(storm.exchanges))


# -- a request that is under way -------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A request of several pictures that waits after the first one."""

    future: Future[Outcome]
    go_on: Event

    def result(self) -> Outcome:
        """Let it go on, and return its answer."""
        self.go_on.set()
        return self.future.result()


@contextmanager
def under_way(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    """A request that has answered its first picture and waits before the second one."""
    begun, go_on, runs = Event(), Event(), itertools.count()
    run = Session.run

    def waiting(session: Session, *words: Any, **options: Any) -> dict[str, Any]:
        if threading.current_thread().name.startswith(UNDER_WAY) and next(runs) == 1:
            begun.set()
            # Whoever waits for the request instead would wait for ever.
            assert go_on.wait(PATIENCE_S), "nobody let the request go on"
        return run(session, *words, **options)

    with monkeypatch.context() as patch, ThreadPoolExecutor(1, UNDER_WAY) as pool:
        patch.setattr(Session, "run", waiting)
        future = pool.submit(runner.infer, IMAGES, "toy_chirps")
        try:
            assert begun.wait(PATIENCE_S), "the request never came to its second picture"
            yield Job(future, go_on)
        finally:
            go_on.set()


@pytest.mark.parametrize("flavour", ["swap", "static"])
def test_replacing_waits_for_no_request_and_the_request_ends_on_its_own_release(
    artefact: Path, fleet: Fleet, flavour: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Runner(artefact, flavour=flavour) as runner:
        old = runner.load(fleet["first"].bundle)
        expected = runner.infer(IMAGES).logits
        with under_way(runner, monkeypatch) as job:
            for name in ("next", "third", "next"):
                new = runner.replace(fleet[name].bundle)
                assert runner.infer(IMAGES).release == new.release
            outcome = job.result()
        assert outcome.release == old.release
        assert same(outcome.logits, expected)
        assert runner.facts.sessions == 1


@pytest.mark.parametrize("end", ["unload", "close"])
def test_a_request_under_way_ends_as_it_would_have(
    artefact: Path, fleet: Fleet, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Runner(artefact) as runner:
        old = runner.load(fleet["first"].bundle)
        with under_way(runner, monkeypatch) as job:
            runner.unload("toy_chirps") if end == "unload" else runner.close()
            with pytest.raises((UnknownNameError, ClosedError)):
                runner.infer(IMAGES, "toy_chirps")
            assert job.result().release == old.release


def slots_of(runner: Runner, name: str) -> list[weakref.ref[npt.NDArray[Any]]]:
    """Weak references to the tensors that a domain's requests use."""
    loaded = runner._open.table[name]
    return [weakref.ref(array) for array in loaded.bound.slots.values()]


def alive(references: list[weakref.ref[npt.NDArray[Any]]]) -> int:
    gc.collect()
    return sum(reference() is not None for reference in references)


@pytest.mark.parametrize("end", ["replace", "unload", "close"])
def test_an_old_release_is_freed_when_its_last_request_ends(
    artefact: Path, fleet: Fleet, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Runner(artefact) as runner:
        runner.load(fleet["first"].bundle)
        tensors = slots_of(runner, "toy_chirps")
        with under_way(runner, monkeypatch) as job:
            if end == "replace":
                runner.replace(fleet["next"].bundle)
            elif end == "unload":
                runner.unload("toy_chirps")
            else:
                runner.close()
            assert alive(tensors) == len(tensors), "a request under way uses them"
            job.result()
        del job
        assert alive(tensors) == 0


def test_an_old_release_without_requests_is_freed_at_once(runner: Runner, fleet: Fleet) -> None:
    runner.load(fleet["first"].bundle)
    for name in ("next", "third", "first"):
        runner.infer(IMAGES)
        tensors = slots_of(runner, "toy_chirps")
        runner.replace(fleet[name].bundle)
        assert alive(tensors) == 0

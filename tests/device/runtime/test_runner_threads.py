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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.support.drawn import same
from tests.support.exported import Fleet
from tests.support.storm import IMAGES, Known, Storm, answer, answer_to_pictures
from toolchain.core.errors import ClosedError, SessionLimitError, UnknownNameError
from toolchain.device import Runner

# By the name that they are loaded under; ``digits`` has another class count than those it replaces.
RELEASES = {
    "toy_chirps": ("first", "next", "third", "digits"),
    "head": ("head",),
    "da2": ("da2",),
}


@pytest.fixture(scope="module")
def known(artefact: Path, fleet: Fleet) -> Known:
    """What each release says, bit for bit, to prepared tensors and to pictures.

    A domain may land on a session of another one's graph, where rounding may differ in the last
    bit: every session that takes it is asked, alone.
    """
    found: Known = {}
    names = [name for group in RELEASES.values() for name in group]
    for host, guest in itertools.product(names, names):
        with Runner(artefact) as made:
            made.load(fleet[host].bundle, name="host")
            try:
                domain = made.load(fleet[guest].bundle, name="guest")
            except SessionLimitError:
                continue
            found[domain.release, answer(made, "guest")] = guest
            found[domain.release, answer_to_pictures(made, "guest")] = guest
    return found


LIMIT_S = 543.21


@pytest.mark.parametrize("seconds", [4, pytest.param(60, marks=pytest.mark.full)])
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


@contextmanager
def under_way(runner: Runner, count: int = 3000) -> Iterator[Any]:
    """A long batch, begun: it is known to have begun as its time limit's timer runs."""
    images = np.broadcast_to(IMAGES[:1], (count, *IMAGES.shape[1:]))
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(runner.infer, images, "toy_chirps", time_limit_s=LIMIT_S)
        while not any(getattr(t, "interval", 0) == LIMIT_S for t in threading.enumerate()):
            assert not job.done()
        yield job


def long_runner(artefact: Path, **options: Any) -> Runner:
    return Runner(artefact, max_batch=100_000, **options)


@pytest.mark.parametrize("flavour", ["swap", "static"])
def test_replacing_waits_for_no_request_and_the_request_ends_on_its_own_release(
    artefact: Path, fleet: Fleet, flavour: Any
) -> None:
    with long_runner(artefact, flavour=flavour) as runner:
        old = runner.load(fleet["first"].bundle)
        wanted = runner.infer(IMAGES[:1]).logits
        with under_way(runner, 20_000) as job:
            for name in ("next", "third", "next"):
                new = runner.replace(fleet[name].bundle)
                assert runner.infer(IMAGES).release == new.release
            assert not job.done(), "the replacements came while the request was under way"
            found = job.result()
        assert found.release == old.release
        assert same(found.logits, np.repeat(wanted, len(found.logits), axis=0))
        assert runner.facts.sessions == 1


@pytest.mark.parametrize("end", ["unload", "close"])
def test_a_request_under_way_ends_as_it_would_have(artefact: Path, fleet: Fleet, end: str) -> None:
    with long_runner(artefact) as runner:
        old = runner.load(fleet["first"].bundle)
        with under_way(runner, 20_000) as job:
            runner.unload("toy_chirps") if end == "unload" else runner.close()
            with pytest.raises((UnknownNameError, ClosedError)):
                runner.infer(IMAGES, "toy_chirps")
            assert not job.done()
            assert job.result().release == old.release


def slots_of(runner: Runner, name: str) -> list[weakref.ref[npt.NDArray[Any]]]:
    """Weak references to the tensors that a domain's requests use."""
    loaded = runner._table[name]
    return [weakref.ref(array) for array in loaded.bound.slots.values()]


def alive(references: list[weakref.ref[npt.NDArray[Any]]]) -> int:
    gc.collect()
    return sum(reference() is not None for reference in references)


@pytest.mark.parametrize("end", ["replace", "unload", "close"])
def test_an_old_release_is_freed_when_its_last_request_ends(
    artefact: Path, fleet: Fleet, end: str
) -> None:
    with long_runner(artefact) as runner:
        runner.load(fleet["first"].bundle)
        tensors = slots_of(runner, "toy_chirps")
        with under_way(runner, 20_000) as job:
            if end == "replace":
                runner.replace(fleet["next"].bundle)
            elif end == "unload":
                runner.unload("toy_chirps")
            else:
                runner.close()
            assert alive(tensors) == len(tensors), "a request under way uses them"
            assert not job.done()
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

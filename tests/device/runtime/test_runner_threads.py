"""Many threads at once: the runner's invariant, as its file writes it down.

Every answer is that of exactly one release, bit for bit; nobody waits for a replacement; a release
is gone after its last request; no more sessions are in use than are allowed. A few seconds in the
normal run, a minute behind the marker ``full``.
"""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.support.drawn import pixels, same, tensor
from tests.support.exported import Fleet
from toolchain.core.errors import ClosedError, LoadedError, SessionLimitError, UnknownNameError
from toolchain.device import Runner

# By the name that they are loaded under; ``digits`` has another class count than those it replaces.
RELEASES = {
    "toy_chirps": ("first", "next", "third", "digits"),
    "head": ("head",),
    "da2": ("da2",),
}
IMAGES = tensor(3, 42)
PICTURES = pixels(3, 42)
EXPECTED = (LoadedError, UnknownNameError, SessionLimitError)
Known = dict[tuple[str, bytes], str]


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


def answer(runner: Runner, name: str) -> bytes:
    found = runner.infer(IMAGES, name)
    return found.release.encode() + found.logits.tobytes() + found.gates.tobytes()


def answer_to_pictures(runner: Runner, name: str) -> bytes:
    found = runner.run_batch(PICTURES, name)
    (release,) = {one.release for one in found}
    gates = np.array([list(one.gates.values()) for one in found], np.bool_)
    labels = " ".join(one.label for one in found).encode()
    logits = b"".join(one.logits.tobytes() for one in found)
    return release.encode() + logits + gates.tobytes() + labels


class Storm:
    """Threads that run, load, replace, unload and install until the time is over."""

    def __init__(
        self,
        runner: Runner,
        fleet: Fleet,
        known: Known,
        folder: Path,
        releases: Mapping[str, Sequence[str]] = RELEASES,
    ) -> None:
        self.runner, self.fleet, self.known, self.folder = runner, fleet, known, folder
        self.releases = releases
        self.answers, self.exchanges, self.refusals = (itertools.count() for _ in range(3))
        self.seen: set[str] = set()
        self._numbers = itertools.count()

    def run(self, seed: int) -> None:
        """Requests of both kinds; each answer is one that a release is known to give."""
        rng = np.random.default_rng(seed)
        name = str(rng.choice(list(self.releases)))
        found = (answer, answer_to_pictures)[seed % 2](self.runner, name)
        release = found[: len("sha256:") + 64].decode()
        assert (release, found) in self.known, f"no release of {name} answers so"
        self.seen.add(self.known[release, found])
        next(self.answers)

    def change(self, seed: int) -> None:
        """Load, replace or unload; what is refused is refused by name."""
        rng = np.random.default_rng(seed)
        name = str(rng.choice(list(self.releases)))
        source = self.fleet[str(rng.choice(self.releases[name]))].bundle
        action = rng.choice(3, p=(0.3, 0.5, 0.2))
        if action == 0:
            self.runner.load(source, name=name)
        elif action == 1:
            self.runner.replace(source, name=name)
        else:
            self.runner.unload(name)
        next(self.exchanges)

    def install(self, seed: int) -> None:
        """Install into a new folder, and put that in the place of what is loaded."""
        rng = np.random.default_rng(seed)
        chosen = str(rng.choice(self.releases["toy_chirps"]))
        folder = self.folder / f"installed-{next(self._numbers)}"
        self.runner.install(self.fleet[chosen].bundle, folder)
        self.runner.replace(folder, name="toy_chirps")

    def watch(self, seed: int) -> None:
        """No more sessions are in use than are allowed."""
        runner = self.runner
        assert len({domain.session for domain in runner.domains.values()}) <= 2
        assert runner.facts.sessions <= runner.facts.session_limit + len(CHANGERS)

    def rage(self, seconds: float) -> None:
        """Let all of it happen at once; what a thread raises is raised here."""
        deadline = time.monotonic() + seconds
        actions = [
            *((self.run, seed) for seed in RUNNERS),
            *((self.change, 100 + seed) for seed in CHANGERS),
            (self.install, 200),
            (self.watch, 300),
        ]
        with ThreadPoolExecutor(len(actions)) as pool:
            jobs = [pool.submit(self.repeat, action, seed, deadline) for action, seed in actions]
        for job in jobs:
            job.result()

    def repeat(self, action: Callable[[int], None], seed: int, deadline: float) -> None:
        for turn in itertools.count():
            if time.monotonic() > deadline:
                return
            try:
                action(seed + 1000 * turn)
            except EXPECTED:
                next(self.refusals)
                # Asking again at once would leave the others no time.
                time.sleep(1e-3)


RUNNERS, CHANGERS = range(8), range(3)
LIMIT_S = 543.21


@pytest.mark.parametrize("seconds", [4, pytest.param(60, marks=pytest.mark.full)])
def test_every_answer_is_one_releases_own(
    artefact: Path, fleet: Fleet, known: Known, tmp_path: Path, seconds: int
) -> None:
    """Law: whatever happens at the same time, no answer mixes two releases."""
    with Runner(artefact, sessions=2) as runner:
        storm = Storm(runner, fleet, known, tmp_path)
        runner.load(fleet["first"].bundle, name="toy_chirps")
        storm.rage(seconds)
        assert runner.facts.sessions <= 2
        assert storm.seen >= {"first", "next", "third", "digits"}
        assert next(storm.answers) > 10 * seconds
        assert next(storm.exchanges) > seconds


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

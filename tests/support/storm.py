"""Many threads at once on one runner: requests, loading, replacing, unloading and installing."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tests.support.drawn import pixels, tensor
from tests.support.exported import Fleet
from toolchain.core.errors import LoadedError, SessionLimitError, UnknownNameError
from toolchain.device import Runner

IMAGES = tensor(3, 42)
PICTURES = pixels(3, 42)
EXPECTED = (LoadedError, UnknownNameError, SessionLimitError)
Known = dict[tuple[str, bytes], str]
RUNNERS, CHANGERS = range(8), range(3)
PATIENCE_S = 120


def answer(runner: Runner, name: str) -> bytes:
    output = runner.infer(IMAGES, name)
    return output.release.encode() + output.logits.tobytes() + output.gates.tobytes()


def answer_to_pictures(runner: Runner, name: str) -> bytes:
    results = runner.run_batch(PICTURES, name)
    (release,) = {one.release for one in results}
    gates = np.array([list(one.gates.values()) for one in results], np.bool_)
    labels = " ".join(one.label for one in results).encode()
    logits = b"".join(one.logits.tobytes() for one in results)
    return release.encode() + logits + gates.tobytes() + labels


class Storm:
    """Threads that run, load, replace, unload and install, all at once."""

    def __init__(
        self,
        runner: Runner,
        fleet: Fleet,
        known: Known,
        folder: Path,
        releases: Mapping[str, Sequence[str]],
    ) -> None:
        self.runner, self.fleet, self.known, self.folder = runner, fleet, known, folder
        self.releases = releases
        # Appending is atomic, so that threads count by it.
        self.answers: list[str] = []
        self.exchanges: list[str] = []
        self.seen: set[str] = set()
        self._numbers = itertools.count()

    def run(self, seed: int) -> None:
        """Requests of both kinds; each answer is one that a release is known to give."""
        rng = np.random.default_rng(seed)
        name = str(rng.choice(list(self.releases)))
        response = (answer, answer_to_pictures)[seed % 2](self.runner, name)
        release = response[: len("sha256:") + 64].decode()
        assert (release, response) in self.known, f"no release of {name} answers so"
        self.seen.add(self.known[release, response])
        self.answers.append(name)

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
        self.exchanges.append(name)

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

    def rage(self, seconds: float, enough: Callable[[Storm], bool]) -> None:
        """Let all of it happen for some seconds; what a thread raises is raised here.

        On a busy machine it goes on until there was ``enough``.
        """
        begun = time.monotonic()

        def is_over() -> bool:
            age = time.monotonic() - begun
            return age > PATIENCE_S or (age > seconds and enough(self))

        actions = [
            *((self.run, seed) for seed in RUNNERS),
            *((self.change, 100 + seed) for seed in CHANGERS),
            (self.install, 200),
            (self.watch, 300),
        ]
        with ThreadPoolExecutor(len(actions)) as pool:
            jobs = [pool.submit(self.repeat, action, seed, is_over) for action, seed in actions]
        for job in jobs:
            job.result()

    def repeat(self, action: Callable[[int], None], seed: int, is_over: Callable[[], bool]) -> None:
        for turn in itertools.count():
            if is_over():
                return
            try:
                action(seed + 1000 * turn)
            except EXPECTED:
                # Asking again at once would leave the others no time.
                time.sleep(1e-3)

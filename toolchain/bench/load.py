"""Requests from several threads while domains are replaced: throughput, wrong answers, memory.

Rules of this file: slices of time with and without swaps follow each other (without, with, with,
without), so that a busy machine slows down both alike. Two releases stand for each name. At any
time half of the names hold their first release and half their second, so requests cost the same
with and without swaps. The rows run in a process of its own, and its memory is read before and
after.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

from toolchain.bench import child
from toolchain.bench.materials import Materials, from_json
from toolchain.bench.memory import resident_bytes
from toolchain.bench.traffic import Traffic, known_answers
from toolchain.bench.ways import Ways
from toolchain.core.errors import RunError
from toolchain.core.timing import Notify
from toolchain.device import Runner

# Mirrored, so that a machine that slowly gets faster or slower does it to both kinds alike.
ORDER = (False, True, True, False)
Pairs = Sequence[tuple[Path, Path]]


@dataclass(frozen=True, slots=True)
class LoadSetup:
    """``swaps`` spread over ``slices`` of ``seconds`` each; as many slices pass without any.

    ``bundle_swaps``: in a third of the time, each reading and verifying a bundle; ``clients``:
    threads that ask without a pause.
    """

    swaps: int = 1000
    bundle_swaps: int = 100
    slices: int = 10
    seconds: float = 3.0
    clients: int = 4


def measure(
    materials: Materials, *, threads: int, setup: LoadSetup, notify: Notify = lambda _: None
) -> dict[str, Any]:
    """Return ``rows`` by way of swapping, ``failed`` and ``mixed`` over all, and ``memory``.

    A row's ``cpu_ms`` is CPU time for an answer, swaps included: it does not count what others do.
    """
    request = {"materials": materials.to_json(), "threads": threads, "setup": asdict(setup)}
    return child.run("load", request, notify=notify)


def in_child(request: Mapping[str, Any], *, notify: Notify) -> dict[str, Any]:
    """Run every row in a process of its own; see :mod:`toolchain.bench.child`."""
    setup, materials = LoadSetup(**request["setup"]), from_json(request["materials"])
    with Ways(materials, threads=request["threads"]) as ways:
        count, runner, image = len(materials.bundles), ways.runner, ways.image()
        ways.prepare("installed", count)
        runner.unload("first")
        folders = [ways.source("installed", index) for index in range(count)]
        known = known_answers(runner, folders, image)
        swaps = _Swaps(runner, pairs_of(folders))
        names = sorted(runner.domains)
        with Traffic(runner, names, image, known, clients=setup.clients) as traffic:
            few = replace(setup, slices=(setup.slices + 2) // 3)
            rows = {}
            # First, as what grows once for so many clients has grown after it.
            notify("swaps of installed domains without a pause")
            rows["installed, no pause"] = _Slices(few, traffic, swaps).row(None)
            notify(f"{setup.swaps} swaps of installed domains")
            before = resident_bytes()
            rows["installed"] = _Slices(setup, traffic, swaps).row(setup.swaps)
            after = resident_bytes()
            notify(f"{setup.bundle_swaps} swaps from bundles")
            swaps.pairs = pairs_of(materials.bundles)
            rows["bundle"] = _Slices(few, traffic, swaps).row(setup.bundle_swaps)
    return {
        "clients": setup.clients,
        "rows": rows,
        "failed": traffic.counts().failed,
        "mixed": traffic.counts().mixed,
        "first_failure": traffic.first_failure,
        "memory": {"before_bytes": before, "after_bytes": after, "ratio": after / before},
    }


def pairs_of(sources: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Return two releases for each name: the first half of the domains with the second half.

    A single pair is given to two names, which hold its two releases in turn.
    """
    half = len(sources) // 2
    pairs = list(zip(sources[:half], sources[half : 2 * half], strict=True))
    return 2 * pairs if half == 1 else pairs


class _Swaps:
    """Names that hold one release of two; calling it exchanges the next one's."""

    def __init__(self, runner: Runner, pairs: Pairs) -> None:
        self.pairs = pairs
        self._runner = runner
        self._holds = [place % 2 for place in range(len(pairs))]
        self._turns = cycle(range(len(pairs)))
        for place, pair in enumerate(pairs):
            runner.load(pair[self._holds[place]], name=f"name{place}", selftest=False)

    def __call__(self) -> None:
        place = next(self._turns)
        self._holds[place] = 1 - self._holds[place]
        source = self.pairs[place][self._holds[place]]
        self._runner.replace(source, name=f"name{place}", selftest=False)


class _Slices:
    """Slices of time with and without swaps, and the answers in each."""

    def __init__(self, setup: LoadSetup, traffic: Traffic, swaps: _Swaps) -> None:
        self.setup = setup
        self.traffic = traffic
        self.swaps = swaps
        self.done = 0
        self.rates: dict[bool, list[float]] = {False: [], True: []}
        self.cpu_s: dict[bool, float] = {False: 0.0, True: 0.0}
        self.answers: dict[bool, int] = {False: 0, True: 0}

    def row(self, count: int | None) -> dict[str, Any]:
        """Let all slices pass with ``count`` swaps in all, None for as many as there can be."""
        before = self.traffic.counts()
        for turn in range(2 * self.setup.slices):
            swapping = ORDER[turn % len(ORDER)]
            due = self._due(count, len(self.rates[True])) if swapping else 0
            started, cpu, answered_before = (
                time.perf_counter(),
                time.process_time(),
                self._answers(),
            )
            self._slice(due)
            answers = self._answers() - answered_before
            self.rates[swapping].append(answers / (time.perf_counter() - started))
            self.cpu_s[swapping] += time.process_time() - cpu
            self.answers[swapping] += answers
        after = self.traffic.counts()
        return {
            "swaps": self.done,
            "swaps_per_s": self.done / (self.setup.slices * self.setup.seconds),
            "answers_per_s": median(self.rates[True]),
            "answers_per_s_without": median(self.rates[False]),
            "ratio": self._ratio(),
            "cpu_ms": self._cpu_ms(swapping=True),
            "cpu_ms_without": self._cpu_ms(swapping=False),
            "slices": {"with": self.rates[True], "without": self.rates[False]},
            "answers": after.answers - before.answers,
            "failed": after.failed - before.failed,
            "mixed": after.mixed - before.mixed,
        }

    def _answers(self) -> int:
        return self.traffic.counts().answers

    def _ratio(self) -> float:
        """Return the median ratio of neighbouring slices: a burst of others' work hits few."""
        pairs = zip(self.rates[True], self.rates[False], strict=True)
        ratios = [one / other for one, other in pairs if other]
        if not ratios:
            raise RunError(
                f"expected an answer in a slice of {self.setup.seconds:g} s, got none in any",
                fix="measure a smaller backbone, or without --quick",
            )
        return median(ratios)

    def _cpu_ms(self, *, swapping: bool) -> float:
        """Return this process's CPU time for an answer, swaps included."""
        return 1e3 * self.cpu_s[swapping] / max(1, self.answers[swapping])

    def _due(self, count: int | None, turn: int) -> int | None:
        """Return how many swaps the ``turn``-th slice with swaps shall have."""
        slices = self.setup.slices
        # As differences of running totals, so that all slices together give exactly ``count``.
        return None if count is None else count * (turn + 1) // slices - count * turn // slices

    def _slice(self, count: int | None) -> None:
        """Let a slice pass, with ``count`` swaps evenly in it, or one after the other."""
        end = time.perf_counter() + self.setup.seconds
        if count is None:
            while time.perf_counter() < end:
                self._swap()
        for left in reversed(range(count or 0)):
            self._swap()
            _sleep_until(end - self.setup.seconds * left / (count or 1))
        _sleep_until(end)

    def _swap(self) -> None:
        self.swaps()
        self.done += 1


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.perf_counter()))

"""Clients that ask one runner without a pause, and hold every answer against what is known.

Rules of this file: each answer names its release. The answer is *mixed* if it differs, by more than
rounding, from what that release answered before all this. It is *failed* if asking raised. Clients
are threads of this process; they end with the context.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from itertools import combinations, cycle
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from toolchain.core.arrays import Floats
from toolchain.core.errors import UsageError
from toolchain.device import Outcome, Runner

# Of the logits' range. Two releases must differ by far more, or a mixture could not be seen.
TOLERANCE = 1e-4
APART = 100 * TOLERANCE

Known = Mapping[str, Outcome]


class AnswerCounts(NamedTuple):
    """How many requests ended, and how many of them were failed or mixed."""

    answers: int
    failed: int
    mixed: int


class Traffic:
    """``clients`` threads that ask for ``names`` in turn, each from another place on."""

    def __init__(
        self, runner: Runner, names: Sequence[str], image: Floats, known: Known, *, clients: int
    ) -> None:
        self.first_failure = ""
        self._runner = runner
        self._image = image
        self._known = known
        # Each client replaces its own tuple as a whole, so ``counts`` needs no lock.
        self._counts = [AnswerCounts(0, 0, 0)] * clients
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(i, [*names[i:], *names[:i]]))
            for i in range(clients)
        ]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def counts(self) -> AnswerCounts:
        """Return the sums over all clients until now."""
        return AnswerCounts(*map(sum, zip(*self._counts, strict=True)))

    def _ask(self, client: int, names: Sequence[str]) -> None:
        for name in cycle(names):
            if self._stop.is_set():
                return
            answers, failed, mixed = self._counts[client]
            try:
                outcome = self._runner.infer(self._image, name)
            except Exception as err:
                self.first_failure = self.first_failure or f"{type(err).__name__}: {err}"
                self._counts[client] = AnswerCounts(answers + 1, failed + 1, mixed)
                continue
            wrong = not is_known(outcome, self._known)
            self._counts[client] = AnswerCounts(answers + 1, failed, mixed + wrong)


def is_known(outcome: Outcome, known: Known) -> bool:
    """Whether an answer is that of the release which it names."""
    expected = known.get(outcome.release)
    return expected is not None and distance(outcome, expected) <= TOLERANCE


def distance(one: Outcome, other: Outcome) -> float:
    """Return the largest error of a logit over the range of ``other``; infinite for other gates."""
    alike = one.logits.shape == other.logits.shape and np.array_equal(one.gates, other.gates)
    if not alike:
        return float("inf")
    return float(np.abs(one.logits - other.logits).max() / (np.ptp(other.logits) or 1.0))


def known_answers(runner: Runner, sources: Sequence[Path], image: Floats) -> Known:
    """Return by release what each domain answers alone to ``image``, float32 ``[1, 3, S, S]``.

    Raises UsageError if two of them answer nearly alike, as nobody could tell them apart then.
    """
    known = {}
    for source in sources:
        runner.load(source, name="known", selftest=False)
        outcome = runner.infer(image, "known")
        known[outcome.release] = outcome
        runner.unload("known")
    for one, other in combinations(known.values(), 2):
        if distance(one, other) < APART:
            raise UsageError(
                f"expected releases that answer differently, {one.release} and {other.release} "
                "answer nearly alike",
                fix="name bundles of different domains",
            )
    return known

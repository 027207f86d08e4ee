"""Time contenders against each other, on a machine that does other things as well.

Rules of this file: contenders run interleaved, in an order drawn anew each round, and are compared
within a round; what is told is the median of the per-round ratios and their quartiles. A short call
is repeated within its turn, so that it is measured warm, as a long one is for most of its run.
The clock is the calling thread's CPU time: sessions here have one thread, so waiting for a busy
machine is not counted (what other processes do to caches and clock rates still is, and the
quartiles show it). It knows nothing about models.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

CLOCK = "thread_time"
TURN_S = 0.02


@dataclass(frozen=True, slots=True)
class Timing:
    """One contender: medians over rounds, and the quartiles of both.

    ``ratio`` is against the first contender of the same round; times are per call.
    """

    median_ms: float
    quartiles_ms: tuple[float, float]
    ratio: float
    ratio_quartiles: tuple[float, float]
    rounds: int


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    notify: Callable[[str], None] = lambda _: None,
) -> dict[str, Timing]:
    """Time every contender ``rounds`` times, warmed up by two calls; the first is the measure."""
    names, order = list(contenders), random.Random(0)
    repeats = {name: _repeats(call) for name, call in contenders.items()}
    seen: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in order.sample(names, len(names)):
            seen[name].append(_seconds(contenders[name], repeats[name]))
        notify(f"round {turn + 1} of {rounds}")
    return {name: _timing(seen[name], seen[names[0]]) for name in names}


def _repeats(call: Callable[[], object]) -> int:
    call()
    return max(1, round(TURN_S / max(_seconds(call, 1), 1e-6)))


def _seconds(call: Callable[[], object], repeats: int) -> float:
    """Return the mean time of one of ``repeats`` calls."""
    started = time.thread_time()
    for _ in range(repeats):
        call()
    return (time.thread_time() - started) / repeats


def _timing(own: list[float], measure: list[float]) -> Timing:
    ratios = [a / b for a, b in zip(own, measure, strict=True)]
    times_ms = [1e3 * value for value in own]
    return Timing(
        median(times_ms), _quartiles(times_ms), median(ratios), _quartiles(ratios), len(own)
    )


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high

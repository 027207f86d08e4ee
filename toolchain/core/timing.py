"""Time contenders against each other, on a machine that does other things as well.

Rules of this file: contenders run interleaved, in an order drawn anew each round, and are compared
within a round. The figures are medians of the per-round ratios and differences, with their
quartiles. A short call is repeated within its turn, so that it is measured warm, as a long one is
for most of its run.

With one thread the clock is the CPU time of the calling thread: waiting for a busy machine does not
count. What other processes do to caches and clock rates still counts, and the quartiles show it. A
session with more threads works outside the calling thread, and a call that touches files waits for
them: both need the wall clock. This file knows nothing about models.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import median, quantiles, stdev
from typing import Literal

ClockName = Literal["thread_time", "perf_counter"]
CLOCK: ClockName = "thread_time"
WALL: ClockName = "perf_counter"
TURN_S = 0.02
# The standard error of a normal sample's median is 1.253 sigma / sqrt(n), and its quartiles lie
# 1.349 sigma apart; two standard errors are called noise.
_NOISE = 2 * 1.253 / 1.349

Call = Callable[[], object]
Notify = Callable[[str], None]
"""Whatever takes long calls it, and says in a few words what begins."""
Samples = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Timing:
    """One contender: medians over rounds, their quartiles, and the 95th percentile; per call.

    ``ratio`` and ``difference_ms`` are against the first contender of the same round; ``noise_ms``
    is how far ``difference_ms`` may be from the true one, two standard errors.
    """

    median_ms: float
    quartiles_ms: tuple[float, float]
    p95_ms: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    difference_ms: float
    difference_quartiles_ms: tuple[float, float]
    noise_ms: float
    rounds: int


def clock_of(threads: int) -> ClockName:
    """Return the clock for models that run with ``threads`` threads."""
    return CLOCK if threads == 1 else WALL


def interleaved(
    contenders: Mapping[str, Call],
    *,
    rounds: int,
    clock: ClockName = CLOCK,
    notify: Notify = lambda _: None,
) -> dict[str, Timing]:
    """Time every contender ``rounds`` times, warmed up by two calls; the first is the measure."""
    samples = _sampled(contenders, rounds, clock, notify)
    measure = next(iter(samples.values()))
    return {name: timing(values, measure) for name, values in samples.items()}


def rebuilt(
    build: Callable[[], Mapping[str, Call]],
    *,
    times: int,
    rounds: int,
    clock: ClockName = CLOCK,
    notify: Notify = lambda _: None,
) -> dict[str, Timing]:
    """Time contenders that are built anew ``times`` times, ``rounds`` in all.

    Two sessions of one model differ, because their weights lie at other addresses. They differ for
    as long as they live, and by more than many of the differences to measure. So the noise comes
    from how far the builds lie apart, and not from the rounds: three standard errors, as builds are
    few.
    """
    builds = []
    for turn in range(times):
        notify(f"build {turn + 1} of {times}")
        builds.append(_sampled(build(), max(2, rounds // times), clock, lambda _: None))
    names = list(builds[0])
    timings = {}
    for name in names:
        # All builds of a contender are one sample; its own builds are compared below.
        own, measure = ([s for one in builds for s in one[key]] for key in (name, names[0]))
        apart = [timing(one[name], one[names[0]]).difference_ms for one in builds]
        noise = 3 * stdev(apart) / sqrt(times) if times > 1 else 0.0
        timings[name] = replace(timing(own, measure), noise_ms=noise)
    return timings


def timing(own_s: Sequence[float], measure_s: Sequence[float]) -> Timing:
    """Return the statistics of ``own_s``, compared round by round with ``measure_s``.

    Both are seconds per call, one value per round.
    """
    ratios = [a / b for a, b in zip(own_s, measure_s, strict=True)]
    gaps_ms = [1e3 * (a - b) for a, b in zip(own_s, measure_s, strict=True)]
    times_ms = [1e3 * value for value in own_s]
    low, high = quartiles(gaps_ms)
    return Timing(
        median_ms=median(times_ms),
        quartiles_ms=quartiles(times_ms),
        p95_ms=percentile95(times_ms),
        ratio=median(ratios),
        ratio_quartiles=quartiles(ratios),
        difference_ms=median(gaps_ms),
        difference_quartiles_ms=(low, high),
        noise_ms=_NOISE * (high - low) / sqrt(len(gaps_ms)),
        rounds=len(times_ms),
    )


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the lower and the upper quartile, between the values."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def percentile95(values: Sequence[float]) -> float:
    """Return the 95th percentile, between the values."""
    return values[0] if len(values) < 2 else quantiles(values, n=20, method="inclusive")[-1]


def _sampled(
    contenders: Mapping[str, Call], rounds: int, clock: ClockName, notify: Notify
) -> Samples:
    """Return the seconds of a call by contender, one per round."""
    # A fixed seed: a benchmark that runs again takes its turns in the same order.
    names, order = list(contenders), random.Random(0)
    now: Callable[[], float] = getattr(time, clock)
    repeats = {name: _repeats(call, now) for name, call in contenders.items()}
    samples: Samples = {name: [] for name in names}
    for turn in range(rounds):
        for name in order.sample(names, len(names)):
            samples[name].append(_seconds(contenders[name], repeats[name], now))
        notify(f"round {turn + 1} of {rounds}")
    return samples


def _repeats(call: Call, now: Callable[[], float]) -> int:
    call()  # the first call is cold
    # A coarse clock may say 0.
    return max(1, round(TURN_S / max(_seconds(call, 1, now), 1e-6)))


def _seconds(call: Call, repeats: int, now: Callable[[], float]) -> float:
    """Return the mean time of one of ``repeats`` calls."""
    started = now()
    for _ in range(repeats):
        call()
    return (now() - started) / repeats

"""How long a domain takes to be there, and what changing between loaded ones adds to a request.

Rules of this file: times are wall clock, because files are read. They were read before, so the disk
is not in it. A swap puts the next domain in place while the last one is still there, then lets that
one go. What a session costs depends on where its memory comes from, so the document has both:
``first``, the first swap of a process, and ``again``, later swaps, which find the memory that
earlier ones freed. Each process is fresh, and every way swaps interleaved with the others.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from toolchain.bench import child
from toolchain.bench.materials import Materials, from_json
from toolchain.bench.ways import Kind, Loaded, Ways
from toolchain.core.arrays import Floats
from toolchain.core.timing import WALL, Notify, Timing, clock_of, timing

MEASURE: Kind = "whole"
STEPS = ("ready", "answered")
# Of each process: the first swap, one between, and those that count as later ones.
SWAPS = 5
LATER = slice(2, None)
# Seconds by step and way, one per swap.
Series = Mapping[str, Mapping[str, Sequence[float]]]


def measure(
    materials: Materials, *, threads: int, processes: int, notify: Notify = lambda _: None
) -> dict[str, Any]:
    """Return ``first`` and ``again`` (ready and answered, timings by way), and the self-test.

    Ratios are against a whole session of the same swap where there are whole models.
    """
    request = {"materials": materials.to_json(), "threads": threads}
    runs = []
    for turn in range(processes):
        notify(f"process {turn + 1} of {processes}")
        runs.append(child.run("swap", request, notify=notify))
    return {
        "clock": WALL,
        "first": _phase([run["seconds"] for run in runs], slice(0, 1)),
        "again": _phase([run["seconds"] for run in runs], LATER),
        "selftest_ms": median(run["selftest_ms"] for run in runs),
    }


def _phase(runs: Sequence[Series], swaps: slice) -> dict[str, Any]:
    """Return timings by step and way over the chosen swaps of all processes."""
    timings = {}
    for step in STEPS:
        samples = {
            kind: [s for run in runs for s in run[step][kind][swaps]] for kind in runs[0][step]
        }
        base = samples.get(MEASURE) or next(iter(samples.values()))
        timings[step] = {kind: asdict(timing(values, base)) for kind, values in samples.items()}
    return timings


def in_child(request: Mapping[str, Any], *, notify: Notify) -> dict[str, Any]:
    """Swap in a process of its own; return seconds by step and way, and a self-test's time."""
    with Ways(from_json(request["materials"]), threads=request["threads"]) as ways:
        for kind in ways.kinds:
            ways.prepare(kind, SWAPS + 1)
        image, order = ways.image(), random.Random(0)
        last = {kind: _timed(ways, kind, 0, image)[1] for kind in ways.kinds}
        series: dict[str, dict[str, list[float]]] = {
            step: {kind: [] for kind in ways.kinds} for step in STEPS
        }
        for turn in range(1, SWAPS + 1):
            notify(f"swap {turn} of {SWAPS}")
            # Another order each turn, so that no way gains from its place in the turn.
            for kind in order.sample(ways.kinds, len(ways.kinds)):
                seconds, loaded = _timed(ways, kind, turn, image)
                last[kind].drop()
                last[kind] = loaded
                for step, value in zip(STEPS, seconds, strict=True):
                    series[step][kind].append(value)
        tested = ways.runner.load(ways.materials.bundles[0], name="tested")
    return {"seconds": series, "selftest_ms": 1e3 * tested.seconds["selftest"]}


def _timed(ways: Ways, kind: Kind, index: int, image: Floats) -> tuple[tuple[float, float], Loaded]:
    """Return seconds until the domain is in place and until its first answer, and the domain."""
    started = time.perf_counter()
    loaded = ways.load(kind, index)
    ready = time.perf_counter() - started
    loaded.ask(image)
    return (ready, time.perf_counter() - started), loaded


def switching(
    materials: Materials, *, threads: int, rounds: int, notify: Notify = lambda _: None
) -> dict[str, Any]:
    """Return, by way, how long the first request after a switch takes, against the next request.

    Every domain is in place and is asked twice in a row. Both requests are the same work: the first
    comes after another domain's request, the second after its own. One way runs at a time.
    """
    with Ways(materials, threads=threads) as ways:
        kinds = [kind for kind in ways.kinds if kind != "installed"]
        rings = {kind: _ring(ways, kind) for kind in kinds}
        image, clock = ways.image(), clock_of(threads)
        now: Callable[[], float] = getattr(time, clock)
        pairs: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        for turn in range(rounds):
            notify(f"round {turn + 1} of {rounds}")
            for kind in kinds:
                pairs[kind] += _turn(rings[kind], image, now)
    return {"clock": clock, "ways": {kind: _switched(own) for kind, own in pairs.items()}}


def _ring(ways: Ways, kind: Kind) -> list[Loaded]:
    """Put every domain in place, whole models as often as there are files."""
    count = len(ways.materials.wholes if kind == "whole" else ways.materials.bundles)
    ways.prepare(kind, count)
    return [ways.load(kind, index) for index in range(count)]


def _turn(ring: list[Loaded], image: Floats, now: Callable[[], float]) -> list[tuple[float, float]]:
    """Ask every domain twice and return the seconds of both; the last one warms up."""
    ring[-1].ask(image)
    pairs = []
    for loaded in ring:
        started = now()
        loaded.ask(image)
        between = now()
        loaded.ask(image)
        pairs.append((between - started, now() - between))
    return pairs


def _switched(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    switched: Timing = timing([first for first, _ in pairs], [second for _, second in pairs])
    staying = timing([second for _, second in pairs], [second for _, second in pairs])
    return {
        "overhead": switched.ratio - 1,
        "overhead_quartiles": [edge - 1 for edge in switched.ratio_quartiles],
        "overhead_ms": switched.difference_ms,
        "switched_ms": switched.median_ms,
        "switched_p95_ms": switched.p95_ms,
        "staying_ms": staying.median_ms,
        "pairs": len(pairs),
    }

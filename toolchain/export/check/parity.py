"""Compare runnable models with the reference: logits, gates, and where they first part.

Rules of this file: numpy only. A result is a value that says what was compared and what was not.
Nothing is tolerated silently. It does not choose pictures and does not build models.

A flavour passes when, at every batch size, the largest absolute error of its logits is at most
``tolerance`` of the reference logits' range, every top-1 is the reference's, and every gate is in
the reference's state.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toolchain.bundle.golden import Golden
from toolchain.core.errors import ParityError
from toolchain.device.runtime.backend import Answer, Runnable
from toolchain.device.runtime.selftest import difference, run_cases
from toolchain.pictures.preprocess import Preprocessing

TOLERANCE = 1e-4
BATCHES = (1, 16)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One flavour at one batch size against the reference.

    ``max_relative`` is ``max_absolute`` over the range of the reference logits. ``first`` names the
    first block whose output diverges, empty if none does or none was looked at.
    """

    flavour: str
    batch: int
    cases: int
    max_absolute: float
    max_relative: float
    top1_mismatches: int
    gate_mismatches: int
    passed: bool
    first: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A flavour under test.

    ``run``: the model; ``tapped``: builds a twin that also gives every block's output, called only
    after a failure. ``takes_slots``: forced cases can be run (a static model has no slots).
    """

    name: str
    run: Runnable
    tapped: Callable[[], Runnable] | None = None
    takes_slots: bool = True
    batches: Sequence[int] = BATCHES


@dataclass(frozen=True, slots=True)
class ParityReport:
    """All comparisons of one domain, with the gates' states that they covered."""

    comparisons: tuple[Comparison, ...]
    tolerance: float
    cases: int
    forced: int
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every comparison passed."""
        return all(c.passed for c in self.comparisons)

    def require(self) -> ParityReport:
        """Return the report if it passed, else raise ParityError with the failures."""
        failures = [c for c in self.comparisons if not c.passed]
        if failures:
            raise ParityError(
                "\n".join([f"parity failed in {len(failures)} comparisons", *map(_line, failures)]),
                fix="look at the first diverging block; `da3 inspect` shows the graph",
            )
        return self


def _line(c: Comparison) -> str:
    where = f", first diverging at {c.first}" if c.first else ""
    return (
        f"  {c.flavour} batch {c.batch}: max error {c.max_absolute:.3g} "
        f"({c.max_relative:.2g} of the range), top-1 differs in {c.top1_mismatches}, "
        f"gates in {c.gate_mismatches} of {c.cases} cases{where}"
    )


def compare(
    golden: Golden,
    candidates: Sequence[Candidate],
    slots: Mapping[str, npt.NDArray[Any]],
    preprocess: Preprocessing,
    *,
    tolerance: float = TOLERANCE,
    threads: int | None = None,
) -> ParityReport:
    """Run every candidate over the cases at its batch sizes and compare.

    ``slots``: the domain's tensors by name. ``threads`` comparisons run at once, by default one per
    core; their order is kept. The report says what differs by more than ``tolerance``, a part of
    the logits' range. Raises ParityError where there is nothing to compare.
    """
    if not candidates or not len(golden):
        raise ParityError(
            f"expected flavours and cases to compare, got {len(candidates)} and {len(golden)}",
            fix="export the domain again",
        )
    jobs, notes = [], []
    for candidate in candidates:
        # A forced case moves a gate's bias. A static graph has its biases inside.
        cases = golden if candidate.takes_slots else golden.take(golden.natural)
        if len(cases) < len(golden):
            notes.append(f"{candidate.name}: {len(golden) - len(cases)} forced cases do not apply")
        jobs += [(cases, candidate, batch) for batch in candidate.batches]

    def run(job: tuple[Golden, Candidate, int]) -> Comparison:
        cases, candidate, batch = job
        return _compare(cases, candidate, slots, preprocess, batch=batch, tolerance=tolerance)

    # A session has one thread and lets Python go on meanwhile: no two wait for each other.
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        comparisons = tuple(pool.map(run, jobs))
    forced = int((~golden.natural).sum())
    return ParityReport(comparisons, tolerance, len(golden), forced, tuple(notes))


def _compare(
    golden: Golden,
    candidate: Candidate,
    slots: Mapping[str, npt.NDArray[Any]],
    preprocess: Preprocessing,
    *,
    batch: int,
    tolerance: float,
) -> Comparison:
    got = run_cases(golden, candidate.run, slots, preprocess, batch)
    error = difference(got, golden, gates=candidate.takes_slots)
    passed = error.within(tolerance)
    first = ""
    if not passed and candidate.tapped is not None:
        # Only now: linking a twin and making its session takes time, and most exports need none.
        tapped = run_cases(golden, candidate.tapped(), slots, preprocess, batch)
        first = first_divergence(golden, tapped, tolerance)
    return Comparison(
        candidate.name,
        batch,
        len(golden),
        error.max_absolute,
        error.max_absolute / error.span,
        error.top1,
        error.gates,
        passed,
        first,
    )


def first_divergence(golden: Golden, got: Answer, tolerance: float) -> str:
    """Return the first adapted block whose probed output is off, empty if none is."""
    for index, site in enumerate(golden.sites):
        value = got.taps.get(f"out.{site}")
        if value is None:
            continue
        want = golden.probes[:, index]
        scale = float(np.abs(want).max()) or 1.0
        # ``not <=`` and not ``>``: a NaN has diverged, and every comparison with it is false.
        if not float(np.abs(value - want).max()) <= tolerance * scale:
            return f"out.{site}"
    return "logits"

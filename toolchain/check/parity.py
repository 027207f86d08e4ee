"""Compare runnable models with the reference: logits, gates, and where they first part.

Rules of this file: numpy only; a result is a value that says what was compared and what was not;
nothing is tolerated silently. It does not choose pictures and does not build models.

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

from toolchain.check.golden import Golden, probe, shifted
from toolchain.errors import ParityError
from toolchain.preprocess import Preprocessing, normalise
from toolchain.runtime.linked import Answer, Runnable

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
class Subject:
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
    subjects: Sequence[Subject],
    slots: Mapping[str, npt.NDArray[Any]],
    preprocess: Preprocessing,
    *,
    tolerance: float = TOLERANCE,
    threads: int | None = None,
) -> ParityReport:
    """Run every subject over the cases at its batch sizes and compare.

    ``threads`` comparisons run at once, by default one per core; their order is kept.
    """
    if not subjects or not len(golden):
        raise ParityError(
            f"expected flavours and cases to compare, got {len(subjects)} and {len(golden)}",
            fix="export the domain again",
        )
    jobs, notes = [], []
    for subject in subjects:
        cases = golden if subject.takes_slots else golden.take(golden.natural)
        if len(cases) < len(golden):
            notes.append(f"{subject.name}: {len(golden) - len(cases)} forced cases do not apply")
        jobs += [(cases, subject, batch) for batch in subject.batches]

    def run(job: tuple[Golden, Subject, int]) -> Comparison:
        cases, subject, batch = job
        return _compare(cases, subject, slots, preprocess, batch=batch, tolerance=tolerance)

    # A session has one thread and lets Python go on meanwhile: no two wait for each other.
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        comparisons = tuple(pool.map(run, jobs))
    forced = int((~golden.natural).sum())
    return ParityReport(comparisons, tolerance, len(golden), forced, tuple(notes))


def _compare(
    golden: Golden,
    subject: Subject,
    slots: Mapping[str, npt.NDArray[Any]],
    preprocess: Preprocessing,
    *,
    batch: int,
    tolerance: float,
) -> Comparison:
    got = run_cases(golden, subject.run, slots, preprocess, batch)
    error = float(np.abs(got.logits - golden.logits).max())
    error = error if np.isfinite(got.logits).all() else float("inf")
    span = float(np.ptp(golden.logits)) or 1.0
    top1 = int((got.logits.argmax(1) != golden.logits.argmax(1)).sum())
    gates = _gate_mismatches(got, golden, static=not subject.takes_slots)
    passed = error <= tolerance * span and top1 == 0 and gates == 0
    first = ""
    if not passed and subject.tapped is not None:
        tapped = run_cases(golden, subject.tapped(), slots, preprocess, batch)
        first = first_divergence(golden, tapped, tolerance)
    return Comparison(
        subject.name, batch, len(golden), error, error / span, top1, gates, passed, first
    )


def _gate_mismatches(got: Answer, golden: Golden, *, static: bool) -> int:
    """Count cases with a gate in another state; a static model may have resolved its gates."""
    if got.gates.shape[1] != golden.gates.shape[1]:
        return 0 if static else len(golden)
    return int(((got.gates >= 0) != (golden.gates >= 0)).any(axis=1).sum())


def run_cases(
    golden: Golden,
    model: Runnable,
    slots: Mapping[str, npt.NDArray[Any]],
    preprocess: Preprocessing,
    batch: int,
) -> Answer:
    """Answer every case in batches of ``batch``.

    Cases with one shift run together, as a shift changes the slots. A short batch of natural cases
    is filled by repeating them, so that the batch size is really run; forced ones stay few.
    """
    logits = np.empty_like(golden.logits)
    gates: npt.NDArray[np.float32] | None = None
    taps: dict[str, npt.NDArray[np.float32]] = {}
    for shift in np.unique(golden.shifts, axis=0) if golden.shifts.size else golden.shifts[:1]:
        given = shifted(slots, golden.gate_sites, shift)
        same = np.flatnonzero((golden.shifts == shift).all(axis=1))
        for start in range(0, len(same), batch):
            rows = same[start : start + batch]
            filled = rows if shift.any() else np.resize(rows, batch)
            images = normalise(preprocess, golden.pixels[filled])
            got = model.run(images, given)
            logits[rows] = got.logits[: len(rows)]
            if gates is None:
                gates = np.zeros((len(golden), got.gates.shape[1]), np.float32)
            gates[rows] = got.gates[: len(rows)]
            for name, value in got.taps.items():
                seen = probe(value[: len(rows)])
                taps.setdefault(name, np.zeros((len(golden), seen.shape[1]), np.float32))[rows] = (
                    seen
                )
    return Answer(logits, gates if gates is not None else golden.gates[:, :0], taps)


def first_divergence(golden: Golden, got: Answer, tolerance: float) -> str:
    """Return the first adapted block whose probed output is off, empty if none is."""
    for index, site in enumerate(golden.sites):
        value = got.taps.get(f"out.{site}")
        if value is None:
            continue
        want = golden.probes[:, index]
        scale = float(np.abs(want).max()) or 1.0
        if not float(np.abs(value - want).max()) <= tolerance * scale:
            return f"out.{site}"
    return "logits"

"""Run golden cases and measure how far a model's answers are from PyTorch's.

Rules of this file: numpy only. It runs a model and compares. The caller decides whether a
difference is too large, except in :func:`selftest`, which a device runs before a domain serves its
first request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from toolchain.bundle.golden import Golden, probe, shifted
from toolchain.core.errors import DeviceError, GraphError, SelftestError, TimeLimitError
from toolchain.device.runtime.backend import Answer, Runnable
from toolchain.pictures.preprocess import Preprocessing, normalise


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far answers may be from golden ones.

    ``tolerance``: error of a logit, relative to the logits' range, in cases whose gates are all in
    the golden state; a gate that flips exchanges a block, so such a case is counted instead.
    ``classes_share`` and ``gates_share``: cases with another best class, and with another gate.
    """

    tolerance: float
    classes_share: float = 0.0
    gates_share: float = 0.0


# For TensorRT engines, by precision; onnxruntime has to keep the bundle's own tolerance. At fp32
# TensorRT adds up in another order and picks other convolution algorithms than onnxruntime. For the
# others toolchain/export/emit/accuracy.py says what the emulation may differ by. A device gets more
# room: twice that for int8, and ten times that for fp16, because devices may add up in fp16 what
# the emulation adds up in fp32.
ALLOWED: Mapping[str, Deviation] = MappingProxyType(
    {
        "fp32": Deviation(1e-3),
        "fp16": Deviation(0.02, 0.02, 0.04),
        "int8": Deviation(0.12, 0.06, 0.16),
    }
)


@dataclass(frozen=True, slots=True)
class Difference:
    """How answers differ from golden data.

    ``max_absolute``: largest error of a logit, infinite where one is not finite; ``span``: range of
    the golden logits; ``top1``: cases with another best class; ``gates``: cases in which a gate is
    in another state. ``agreed_absolute``: largest error among the other cases.
    """

    max_absolute: float
    span: float
    top1: int
    gates: int
    agreed_absolute: float = float("inf")

    def within(self, tolerance: float) -> bool:
        """Whether the answers are the golden ones, logits up to ``tolerance`` of their range."""
        return self.max_absolute <= tolerance * self.span and not self.top1 and not self.gates

    def allowed(self, by: Deviation, cases: int) -> bool:
        """Whether ``by`` lets answers to ``cases`` cases differ so; never if one is not finite.

        Of a share above zero one case is always allowed: golden data have a dozen, and one picture
        near a threshold says nothing about the rest.
        """
        if not by.gates_share and not by.classes_share:
            return self.within(by.tolerance)
        return bool(
            np.isfinite(self.max_absolute)
            and self.agreed_absolute <= by.tolerance * self.span
            and self.top1 <= max(1, by.classes_share * cases)
            and self.gates <= max(1, by.gates_share * cases)
        )


def difference(got: Answer, golden: Golden, *, gates: bool = True) -> Difference:
    """Compare; ``gates`` is false for a model that has resolved some."""
    # In float64, as golden logits near the end of float32 would have an infinite range.
    expected = golden.logits.astype(np.float64)
    finite = bool(np.isfinite(got.logits).all())
    errors = np.abs(got.logits - expected).max(axis=1) if finite else np.full(len(expected), np.inf)
    # Golden logits that are all one number have no range to divide by.
    span = float(np.ptp(expected)) or 1.0
    top1 = int((got.logits.argmax(1) != golden.logits.argmax(1)).sum())
    other = _other_gates(got, golden, gates=gates)
    agreed = float(errors[~other].max(initial=0.0))
    return Difference(float(errors.max()), span, top1, int(other.sum()), agreed)


def _other_gates(got: Answer, golden: Golden, *, gates: bool) -> npt.NDArray[np.bool_]:
    """Return the cases in which a gate is in another state, ``[K]``."""
    if got.gates.shape[1] != golden.gates.shape[1]:
        return np.full(len(golden), gates)
    other: npt.NDArray[np.bool_] = ((got.gates >= 0) != (golden.gates >= 0)).any(axis=1)
    return other


def selftest(
    golden: Golden,
    model: Runnable,
    slots: Mapping[str, npt.NDArray[Any]],
    preprocess: Preprocessing,
    *,
    allowed: Deviation,
    static: bool,
) -> Difference:
    """Answer every golden case and return the difference.

    A static model answers the natural cases only, as it has no slots to force a gate through.
    Raises SelftestError if an answer is another than the golden one, or if the model gives none:
    it fails, its time limit is over, or there is no case that it can be asked.
    """
    cases = golden.take(golden.natural) if static else golden
    if not len(cases):
        raise SelftestError(
            "expected golden cases without a forced gate, got none",
            fix="export the domain with more golden pictures",
        )
    try:
        got = run_cases(cases, model, slots, preprocess, 1)
    except (GraphError, TimeLimitError, DeviceError) as err:
        raise SelftestError(f"no answer to the golden cases: {err.message}", fix=err.fix) from err
    measured = difference(got, cases, gates=not static)
    if static:
        # Its gates are folded or not told, so every case counts.
        measured = replace(measured, gates=0, agreed_absolute=measured.max_absolute)
    if not measured.allowed(allowed, len(cases)):
        raise SelftestError(
            f"expected the golden answers in {len(cases)} cases within {allowed.tolerance:g} of "
            f"the logits' range, got an error of {measured.max_absolute / measured.span:.2g}, "
            f"another class in {measured.top1} and another gate in {measured.gates} of them",
            fix="run `da3 check` on the bundle; if it passes, this device computes otherwise",
        )
    return measured


def run_cases(
    golden: Golden,
    model: Runnable,
    slots: Mapping[str, npt.NDArray[Any]],
    preprocess: Preprocessing,
    batch: int,
) -> Answer:
    """Answer every case in batches of ``batch``; one row each, in the order of ``golden``.

    Cases with one shift run together, as a shift changes the slots. A short batch of natural cases
    is filled by repeating them, so that the batch size is really run; forced ones stay few. The
    taps are probed as the golden ones are. Raises SelftestError for another number of classes.
    """
    logits = np.empty_like(golden.logits)
    gates: npt.NDArray[np.float32] | None = None
    taps: dict[str, npt.NDArray[np.float32]] = {}
    # Without gates a shift has no columns, and one empty row stands for every case.
    for shift in np.unique(golden.shifts, axis=0) if golden.shifts.size else golden.shifts[:1]:
        forced = shifted(slots, golden.gate_sites, shift)
        same = np.flatnonzero((golden.shifts == shift).all(axis=1))
        for start in range(0, len(same), batch):
            rows = same[start : start + batch]
            filled = rows if shift.any() else np.resize(rows, batch)
            images = normalise(preprocess, golden.images(filled))
            got = model.run(images, forced)
            if got.logits.shape[1] != logits.shape[1]:
                raise SelftestError(
                    f"expected logits of {logits.shape[1]} classes, got {got.logits.shape[1]}",
                    fix="export the domain again",
                )
            logits[rows] = got.logits[: len(rows)]
            if gates is None:
                gates = np.zeros((len(golden), got.gates.shape[1]), np.float32)
            gates[rows] = got.gates[: len(rows)]
            for name, value in got.taps.items():
                probed = probe(value[: len(rows)])
                empty = np.zeros((len(golden), probed.shape[1]), np.float32)
                taps.setdefault(name, empty)[rows] = probed
    return Answer(logits, gates if gates is not None else golden.gates[:, :0], taps)

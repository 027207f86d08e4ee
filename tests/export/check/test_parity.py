"""Comparing: what passes, what fails, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.bundle.test_golden import cases
from toolchain.bundle.golden import FORCE, Golden, probe
from toolchain.core.arrays import Floats
from toolchain.core.errors import ParityError
from toolchain.device.runtime.backend import Answer
from toolchain.device.runtime.selftest import run_cases
from toolchain.export.check.parity import Candidate, compare, first_divergence
from toolchain.pictures.preprocess import Preprocessing, normalise

PREPROCESS = Preprocessing(8, 8, "none", "nearest", "RGB", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SLOTS = {f"block{i:02d}.gate.bias": np.zeros(1, np.float32) for i in range(2)}


class Linear:
    """A real, tiny model: logits are sums over the picture; a gate closes by its bias."""

    def __init__(self, *, error: float = 0.0, taps: bool = False, gates: bool = True) -> None:
        self.error, self.taps, self.gates = error, taps, gates
        self.sizes: list[int] = []

    def run(self, images: Floats, slots: Mapping[str, Any]) -> Answer:
        self.sizes.append(len(images))
        flat = images.reshape(len(images), 4, -1)
        first, second = flat.sum(2), 0.5 * flat[:, ::-1].sum(2) + self.error
        bias = np.concatenate([slots[f"block{i:02d}.gate.bias"] for i in range(2)])
        gates = first[:, :2] + bias
        logits = np.where(gates[:, :1] >= 0, first + second, second)
        taps = {"out.block00": first, "out.block01": second} if self.taps else {}
        return Answer(logits, gates if self.gates else gates[:, :0], taps)


def reference(count: int = 5) -> Golden:
    """Golden cases of the exact model; the last one is forced."""
    drawn = cases(count)
    drawn.shifts[-1] = [FORCE, 0]
    images = normalise(PREPROCESS, drawn.pixels)
    answers = [
        Linear(taps=True).run(
            images[i : i + 1],
            {n: SLOTS[n] + drawn.shifts[i, k] for k, n in enumerate(sorted(SLOTS))},
        )
        for i in range(count)
    ]
    probes = [np.stack([probe(f.taps[f"out.block{k:02d}"])[0] for k in range(2)]) for f in answers]
    return replace(
        drawn,
        logits=np.concatenate([f.logits for f in answers]),
        gates=np.concatenate([f.gates for f in answers]).astype(np.float32),
        probes=np.stack(probes),
    )


GOLDEN = reference()


def candidate(model: Linear, **changes: Any) -> Candidate:
    return Candidate(**{"name": "swap-rows", "run": model, "batches": (1, 16), **changes})


def test_the_same_model_passes_at_every_batch_size() -> None:
    model = Linear()
    report = compare(GOLDEN, [candidate(model)], SLOTS, PREPROCESS).require()
    assert report.passed
    assert {c.batch for c in report.comparisons} == {1, 16}
    assert all(c.max_relative < 1e-6 and c.cases == 5 for c in report.comparisons)
    assert (report.cases, report.forced) == (5, 1)
    assert set(model.sizes) == {1, 16}, "a short batch is filled, never shrunk"


def test_every_case_is_run_with_its_own_shift() -> None:
    """Law: run_cases gives each case the answer of its shift, in any batch size."""
    for batch in (1, 2, 16):
        answers = run_cases(GOLDEN, Linear(), SLOTS, PREPROCESS, batch)
        assert np.allclose(answers.logits, GOLDEN.logits, rtol=1e-6)
        assert np.allclose(answers.gates, GOLDEN.gates, rtol=1e-6)
    assert answers.gates[-1, 0] > FORCE / 2


def test_an_error_beyond_the_tolerance_fails_and_says_where() -> None:
    wrong = candidate(Linear(error=0.5), tapped=lambda: Linear(error=0.5, taps=True))
    report = compare(GOLDEN, [candidate(Linear(), name="good"), wrong], SLOTS, PREPROCESS)
    assert [c.passed for c in report.comparisons] == [True, True, False, False]
    with pytest.raises(
        ParityError, match=r"failed in 2 comparisons\n  swap-rows batch 1"
    ) as caught:
        report.require()
    assert "first diverging at out.block01" in str(caught.value)
    assert "good" not in str(caught.value)


def test_the_tolerance_is_relative_to_the_logits_range() -> None:
    span = float(np.ptp(GOLDEN.logits))
    for share, passed in ((0.5, True), (2.0, False)):
        model = Linear(error=1e-3 * span * share)
        report = compare(GOLDEN, [candidate(model)], SLOTS, PREPROCESS, tolerance=1e-3)
        gates = [c.gate_mismatches for c in report.comparisons]
        assert gates == [0, 0]
        assert [c.max_relative <= 1e-3 for c in report.comparisons] == [passed] * 2


def test_a_top1_that_differs_fails_within_any_tolerance() -> None:
    logits = GOLDEN.logits.copy()
    logits[0] = np.roll(logits[0], 1)
    report = compare(
        replace(GOLDEN, logits=logits), [candidate(Linear())], SLOTS, PREPROCESS, tolerance=100.0
    )
    assert [c.top1_mismatches for c in report.comparisons] == [1, 1]
    assert not report.passed


def test_a_gate_in_another_state_fails() -> None:
    gates = GOLDEN.gates.copy()
    gates[1, 1] *= -1
    report = compare(replace(GOLDEN, gates=gates), [candidate(Linear())], SLOTS, PREPROCESS)
    assert [c.gate_mismatches for c in report.comparisons] == [1, 1]
    assert not report.passed


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_answers_that_are_not_finite_fail(value: Any) -> None:
    report = compare(GOLDEN, [candidate(Linear(error=value))], SLOTS, PREPROCESS)
    assert not any(c.passed for c in report.comparisons)
    assert all(c.max_absolute == np.inf for c in report.comparisons)


def test_a_static_model_skips_forced_cases_and_says_so() -> None:
    static = candidate(Linear(), name="static-if", takes_slots=False)
    report = compare(GOLDEN, [static], SLOTS, PREPROCESS).require()
    assert {c.cases for c in report.comparisons} == {4}
    assert report.notes == ("static-if: 1 forced cases do not apply",)


def test_a_static_model_without_gates_is_held_to_its_logits() -> None:
    static = candidate(Linear(gates=False), name="static-if", takes_slots=False)
    report = compare(GOLDEN, [static], SLOTS, PREPROCESS)
    assert [c.gate_mismatches for c in report.comparisons] == [0, 0]
    assert report.passed


def test_a_model_that_takes_slots_may_not_lose_its_gates() -> None:
    """Gates that are not given cannot be compared: that is a failure, not a pass."""
    report = compare(GOLDEN, [candidate(Linear(gates=False))], SLOTS, PREPROCESS)
    assert not report.passed


def test_a_domain_without_gates_is_compared() -> None:
    bare = cases(3, gates=0, blocks=0)

    class Plain(Linear):
        def run(self, images: Floats, slots: Mapping[str, Any]) -> Answer:
            flat = images.reshape(len(images), 4, -1).sum(2)
            return Answer(flat, np.zeros((len(images), 0), np.float32), {})

    want = Plain().run(normalise(PREPROCESS, bare.pixels), {}).logits
    report = compare(replace(bare, logits=want), [candidate(Plain())], {}, PREPROCESS)
    assert report.passed
    assert {c.cases for c in report.comparisons} == {3}


def test_the_first_divergence_is_the_first_block_not_the_worst() -> None:
    taps = {f"out.block{i:02d}": GOLDEN.probes[:, i].copy() for i in range(2)}
    taps["out.block00"][2, 3] += 1e-2 * float(np.abs(GOLDEN.probes[:, 0]).max())
    taps["out.block01"] += 100
    assert (
        first_divergence(GOLDEN, Answer(GOLDEN.logits, GOLDEN.gates, taps), 1e-4) == "out.block00"
    )
    taps["out.block00"] = GOLDEN.probes[:, 0]
    assert (
        first_divergence(GOLDEN, Answer(GOLDEN.logits, GOLDEN.gates, taps), 1e-4) == "out.block01"
    )
    taps["out.block01"] = GOLDEN.probes[:, 1]
    assert first_divergence(GOLDEN, Answer(GOLDEN.logits, GOLDEN.gates, taps), 1e-4) == "logits"


def test_a_nan_in_a_block_diverges() -> None:
    taps = {"out.block00": GOLDEN.probes[:, 0] * np.float32(np.nan)}
    assert (
        first_divergence(GOLDEN, Answer(GOLDEN.logits, GOLDEN.gates, taps), 1e-4) == "out.block00"
    )


def test_comparing_nothing_is_no_pass() -> None:
    with pytest.raises(ParityError, match="expected flavours and cases to compare, got 0"):
        compare(GOLDEN, [], {}, PREPROCESS)

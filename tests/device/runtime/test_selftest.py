"""The self-test: what passes, what fails, and a model that gives no answer at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.export.check.test_parity import PREPROCESS, SLOTS, Linear, reference
from toolchain.bundle.golden import FORCE, Golden
from toolchain.core.arrays import Floats
from toolchain.core.errors import Da3Error, GraphError, SelftestError, TimeLimitError
from toolchain.device.runtime.backend import Answer, Runnable
from toolchain.device.runtime.selftest import ALLOWED, Deviation, difference, run_cases, selftest

TOLERANCE = 1e-4


class Broken(Linear):
    """A model that fails as a session does."""

    def __init__(self, fault: Da3Error) -> None:
        super().__init__()
        self.fault = fault

    def run(self, images: Floats, slots: Mapping[str, Any]) -> Answer:
        raise self.fault


def check(golden: Golden, model: Runnable, *, static: bool = False) -> Any:
    return selftest(golden, model, SLOTS, PREPROCESS, allowed=Deviation(TOLERANCE), static=static)


def answer(golden: Golden, **changes: Any) -> Answer:
    return replace(Answer(golden.logits.copy(), golden.gates.copy(), {}), **changes)


def test_the_reference_itself_passes() -> None:
    result = check(reference(), Linear())
    assert result.within(TOLERANCE)
    assert (result.top1, result.gates) == (0, 0)


@given(st.integers(0, 4), st.integers(0, 3), st.sampled_from([-1, 1]))
def test_one_altered_golden_logit_is_found(case: int, place: int, sign: int) -> None:
    """Law: a golden value moved by more than the tolerance fails, wherever it stands."""
    golden = reference()
    logits = golden.logits.copy()
    logits[case, place] += sign * 0.01 * float(np.ptp(golden.logits))
    with pytest.raises(SelftestError, match="expected the golden answers in 5 cases") as caught:
        check(replace(golden, logits=logits), Linear())
    assert caught.value.exit_code == 3


def test_huge_golden_logits_do_not_widen_the_tolerance_to_infinity() -> None:
    """Attack: the range of float32's extremes is infinite in float32, and so was the tolerance."""
    golden = reference()
    logits = golden.logits.copy()
    logits[0, golden.logits[0].argmax()] = 3e38
    logits[0, golden.logits[0].argmin()] = -3e38
    with pytest.raises(SelftestError):
        check(replace(golden, logits=logits), Linear())


def test_another_state_of_one_gate_is_found() -> None:
    golden = reference()
    gates = golden.gates.copy()
    gates[0, 0] *= -1
    with pytest.raises(SelftestError, match="another gate in 1 of them"):
        check(replace(golden, gates=gates), Linear())


def test_a_gate_forced_the_other_way_is_found() -> None:
    golden = reference()
    shifts = golden.shifts.copy()
    shifts[-1] = [-FORCE, 0]
    with pytest.raises(SelftestError):
        check(replace(golden, shifts=shifts), Linear())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_never_passes(value: float) -> None:
    golden = reference()
    logits = golden.logits.copy()
    logits[1, 0] = value
    result = difference(answer(golden, logits=logits), golden)
    assert result.max_absolute == np.inf
    assert not result.within(1.0)


def test_golden_logits_that_are_all_equal_have_a_range_of_one() -> None:
    golden = reference()
    flat = replace(golden, logits=np.zeros_like(golden.logits))
    assert difference(answer(flat), flat).span == 1.0
    assert not difference(answer(flat, logits=flat.logits + 1), flat).within(0.5)


def test_missing_gate_outputs_are_a_difference_unless_they_were_resolved() -> None:
    golden = reference()
    without = answer(golden, gates=golden.gates[:, :0])
    assert difference(without, golden).gates == len(golden)
    assert difference(without, golden, gates=False).gates == 0


def test_a_static_model_answers_the_natural_cases_alone() -> None:
    model = Linear(gates=False)
    result = check(reference(), model, static=True)
    assert result.gates == 0
    assert len(model.sizes) == 4
    with pytest.raises(SelftestError, match="in 4 cases"):
        check(reference(), Linear(error=1.0), static=True)


def test_golden_cases_that_are_all_forced_cannot_test_a_static_model() -> None:
    """Attack: no case to fail in is no pass."""
    golden = reference()
    forced = golden.take(~golden.natural)
    with pytest.raises(SelftestError, match="without a forced gate, got none"):
        check(forced, Linear(), static=True)


@pytest.mark.parametrize("fault", [GraphError("it broke"), TimeLimitError("it took too long")])
def test_a_model_that_gives_no_answer_fails_the_test(fault: Da3Error) -> None:
    with pytest.raises(SelftestError, match=f"no answer to the golden cases: {fault.message}"):
        check(reference(), Broken(fault))


@given(st.integers(1, 6), st.integers(1, 7))
def test_the_batch_changes_nothing(count: int, batch: int) -> None:
    """Law: cases are answered in their own places, in batches of any size."""
    golden = reference(count + 1)
    one = run_cases(golden, Linear(), SLOTS, PREPROCESS, 1)
    many = run_cases(golden, Linear(), SLOTS, PREPROCESS, batch)
    assert np.allclose(one.logits, many.logits, atol=1e-3)
    assert np.array_equal(one.gates >= 0, many.gates >= 0)


# -- less than fp32 --------------------------------------------------------------------------------

LOOSE = Deviation(0.01, 0.3, 0.3)


def loose(golden: Golden, got: Answer, allowed: Deviation = LOOSE) -> bool:
    return difference(got, golden).allowed(allowed, len(golden))


def test_a_share_of_zero_allows_no_case() -> None:
    golden = reference()
    gates = golden.gates.copy()
    gates[0, 0] *= -1
    assert loose(golden, answer(golden), Deviation(0.0))
    assert not loose(golden, answer(golden, gates=gates), Deviation(1.0))


@given(st.integers(0, 4), st.floats(1, 100))
def test_a_logit_may_be_far_off_only_where_a_gate_flipped(case: int, off: float) -> None:
    """Law: a flipped gate exchanges a block, which is counted; all other errors are held."""
    golden = reference()
    logits, gates = golden.logits.copy(), golden.gates.copy()
    logits[case, logits[case].argmax()] += off * float(np.ptp(golden.logits))
    assert not loose(golden, answer(golden, logits=logits))
    gates[case, 0] *= -1
    assert loose(golden, answer(golden, logits=logits, gates=gates))


def test_more_cases_than_the_share_are_too_many() -> None:
    golden = reference(9)
    gates = golden.gates.copy()
    for count in range(len(golden)):
        allowed = count <= LOOSE.gates_share * len(golden)
        assert loose(golden, answer(golden, gates=gates)) == allowed
        gates[count, 0] *= -1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_answer_that_is_not_finite_is_never_allowed(value: float) -> None:
    golden = reference()
    logits, gates = golden.logits.copy(), golden.gates.copy()
    logits[1, 0] = value
    gates[1, 0] *= -1
    assert not loose(golden, answer(golden, logits=logits, gates=gates), Deviation(1.0, 1.0, 1.0))


def test_every_precision_has_an_allowance_and_none_is_stricter_than_a_finer_one() -> None:
    fp32, fp16, int8 = (ALLOWED[name] for name in ("fp32", "fp16", "int8"))
    assert (fp32.classes_share, fp32.gates_share) == (0, 0)
    assert fp32.tolerance < fp16.tolerance < int8.tolerance

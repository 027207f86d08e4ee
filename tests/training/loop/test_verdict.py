"""The verdict on a finished training: what chance explains, and what it does not."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from tests.support import stripes
from toolchain.core.confusion import Confusion
from toolchain.core.errors import BelowHeadError, DivergedError, TrainingError
from toolchain.training.loop.evaluation import Evaluation
from toolchain.training.loop.verdict import chance_of, verdict

SHARES = st.floats(0, 1)


def evaluated(accuracy: float, samples: int, loss: float, rates: dict[str, float]) -> Evaluation:
    """An evaluation with so many of ``samples`` pictures right."""
    right = round(accuracy * samples)
    cells = ((0, 0, right), (0, 1, samples - right))
    return Evaluation(Confusion(3, cells), loss, 1.0, rates)


def judged(
    accuracy: float, head: float, *, samples: int = 1000, loss: float = 0.5, gates: bool = True
) -> TrainingError | None:
    rates = {"block00": 0.5} if gates else {}
    evaluation = evaluated(accuracy, samples, loss, rates)
    return verdict(stripes.RECIPE, evaluation, head)


def test_chance_is_no_fault_and_more_is() -> None:
    # Of 1,000 pictures at 90 %, two draws differ by 2.2 points once in twenty times.
    assert judged(0.885, 0.90) is None
    fault = judged(0.87, 0.90)
    assert isinstance(fault, BelowHeadError)
    assert "accuracy 87.0%, the head alone 90.0%" in fault.message
    assert fault.exit_code == 6


def test_the_fix_names_what_the_recipe_has() -> None:
    fault = judged(0.5, 0.9)
    assert fault is not None
    for words in ("train.lr (now 0.01)", "train.epochs (now 3)", "train.budget (now 0.6)"):
        assert words in fault.fix
    # The same training again would end as this one did.
    assert fault.settings == ("train.lr=0.003", "train.epochs=6")
    without = judged(0.5, 0.9, gates=False)
    assert without is not None
    assert "budget" not in without.fix


def test_a_loss_that_exploded_is_a_fault_at_any_accuracy() -> None:
    for loss in (11 * math.log(3), math.inf, math.nan):
        assert isinstance(judged(0.9, 0.3, loss=loss), DivergedError)
    assert judged(0.9, 0.3, loss=9 * math.log(3)) is None


@given(accuracy=SHARES, head=SHARES, samples=st.integers(1, 10**6))
def test_no_domain_that_is_as_good_as_its_head_is_blamed(
    accuracy: float, head: float, samples: int
) -> None:
    fault = judged(accuracy, head, samples=samples)
    evaluation = evaluated(accuracy, samples, 0.5, {})
    assert (fault is not None) == (head - evaluation.accuracy > chance_of(evaluation, head))
    if evaluation.accuracy >= head:
        assert fault is None

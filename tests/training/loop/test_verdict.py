"""The verdict on a finished training: what chance explains, and what it does not."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from tests.support import stripes
from toolchain.core.confusion import Confusion
from toolchain.core.errors import BelowHeadError, DivergedError, TrainingError
from toolchain.training.adapt.checkpoint import EpochFigures, History
from toolchain.training.loop.evaluation import Evaluation
from toolchain.training.loop.verdict import chance_of, conclusion, verdict

SHARES = st.floats(0, 1)


def evaluated(accuracy: float, samples: int, loss: float, rates: dict[str, float]) -> Evaluation:
    """An evaluation with so many of ``samples`` pictures right."""
    right = round(accuracy * samples)
    cells = ((0, 0, right), (0, 1, samples - right))
    return Evaluation(Confusion(3, cells), loss, 1.0, rates)


def judged(
    accuracy: float,
    head: float,
    *,
    samples: int = 1000,
    loss: float = 0.5,
    gates: bool = True,
    steps: int = 900,
) -> TrainingError | None:
    rates = {"block00": 0.5} if gates else {}
    evaluation = evaluated(accuracy, samples, loss, rates)
    return verdict(stripes.RECIPE, evaluation, head, steps=steps)


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


def concluded(
    rates: dict[str, float],
    share: float,
    *,
    best: int = 1,
    steps: int = 400,
    weight: float = 5,
    cells: tuple[tuple[int, int, int], ...] = ((0, 0, 900), (0, 1, 100)),
) -> str:
    """What is said of a training of two epochs under a budget of 0.6."""
    evaluation = Evaluation(Confusion(3, cells), 0.5, share, rates)
    epochs = (EpochFigures(accuracy=0.9, loss=0.5, executed_share=share, lr=0.01),) * 2
    return conclusion(
        stripes.recipe(budget_weight=weight),
        evaluation,
        0.85,
        History(epochs, best, validation=60),
        steps=steps,
        classes=stripes.CLASSES,
    )


def test_the_conclusion_says_what_was_gained_and_which_gates_decide() -> None:
    text = concluded({"block00": 0.5, "block02": 0.99, "block03": 0.0}, 0.62)
    assert text.startswith("5.0 points above the head alone; by chance two such tests differ by")
    assert "62% of the backbone runs for an average picture, asked for were 60%." in text
    assert "1 of 3 gates decide by picture (open for all but a few: block02; closed" in text
    assert "--set" not in text


def test_the_conclusion_names_one_thing_to_try_where_the_training_shows_it() -> None:
    assert "--set train.budget_weight=15" in concluded({"block00": 0.9}, 0.9, best=2)
    assert "--set train.epochs=6" in concluded({"block00": 0.5}, 0.6, best=2)
    assert "gates" not in concluded({}, 1.0)


def test_few_steps_or_a_full_weight_are_not_answered_by_more_weight() -> None:
    assert "--set train.epochs=40" in concluded({"block00": 0.9}, 0.9, steps=60)
    assert "--set" not in concluded({"block00": 0.9}, 0.9, weight=400)


def test_classes_of_which_nothing_is_recognised_are_named() -> None:
    text = concluded({}, 1.0, cells=((0, 0, 190), (1, 0, 10)))
    assert "No test picture was recognised of: down." in text
    assert "No test picture" not in concluded({}, 1.0)


def test_few_pictures_prove_nothing() -> None:
    """One picture that is answered rightly by one and wrongly by the other is chance."""
    for samples in (1, 2):
        assert chance_of(evaluated(0.0, samples, 0.5, {}), 1.0) == 1
    assert judged(0.0, 1.0, samples=2) is None
    assert judged(0.0, 1.0, samples=20) is not None


def test_few_steps_are_the_first_thing_to_change() -> None:
    few, enough = judged(0.5, 0.9, steps=60), judged(0.5, 0.9)
    assert few is not None
    assert enough is not None
    assert few.fix.startswith("raise train.epochs (now 3), lower train.lr")
    assert few.settings == ("train.epochs=40",)  # 800 steps at 20 an epoch
    assert enough.fix.startswith("lower train.lr")
    assert enough.settings == ("train.lr=0.003", "train.epochs=6")

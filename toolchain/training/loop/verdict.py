"""What a finished training reached, and whether it made its domain better or worse.

Rules of this file: a pure function of what was measured on the test split, so that a resumed
training is judged as one that never stopped. It returns an error and raises none: the checkpoint is
written in any case, and its user decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from toolchain.core.errors import BelowHeadError, DivergedError, TrainingError, first_few
from toolchain.recipe import Recipe
from toolchain.recipe.spec import MAX_BUDGET_WEIGHT
from toolchain.training.adapt.checkpoint import History
from toolchain.training.loop.evaluation import Evaluation

EXPLODED = 10.0
"""A loss so many times that of a guess among all classes is no longer about the pictures."""

FEW_STEPS = 400
"""With fewer, additive adaptors that start from a head of zero are seldom done."""

DECIDES = 0.05
"""A gate decides by picture if it is open, and closed, for at least this share of them."""

OVER = 0.05
"""A share so far above the budget is worth a word."""

CHANCE = 1.645
"""Standard errors that chance alone exceeds once in twenty trainings (one-sided, normal)."""


def gentler(err: TrainingError, recipe: Recipe) -> TrainingError:
    """Return ``err`` with about a third of the learning rate among its ``settings``."""
    err.settings = (f"train.lr={float(f'{recipe.train.lr * 0.3:.1g}'):g}",)
    return err


def verdict(
    recipe: Recipe, evaluation: Evaluation, head_accuracy: float, steps: int
) -> TrainingError | None:
    """Return what is wrong with a trained domain, None if it is as good as its own head alone.

    DivergedError: the test loss is ten times that of a guess. BelowHeadError: the accuracy lies
    below that of the head-only baseline by more than two independent draws of as many pictures
    differ by chance. That is the cautious choice: both were tested on the same pictures.
    """
    spec = recipe.train
    accuracies = f"accuracy {evaluation.accuracy:.1%}, the head alone {head_accuracy:.1%}"
    guess = math.log(evaluation.confusion.classes)
    if not evaluation.loss <= EXPLODED * guess:
        diverged = DivergedError(
            f"the training diverged: the test loss is {evaluation.loss:.3g}, a guess has "
            f"{guess:.3g} ({accuracies})",
            fix=f"lower train.lr in the recipe (now {spec.lr:g}) and train again, overwriting this "
            "checkpoint",
        )
        return gentler(diverged, recipe)
    short, chance = head_accuracy - evaluation.accuracy, chance_of(evaluation, head_accuracy)
    if short <= chance:
        return None
    advice = [f"lower train.lr (now {spec.lr:g})", f"raise train.epochs (now {spec.epochs})"]
    few = steps < FEW_STEPS
    if few:
        advice.reverse()
    if evaluation.gate_rates and spec.budget < 1:
        advice.append(f"raise train.budget (now {spec.budget:g})")
    if spec.augment:
        advice.append(f"use less of train.augment (now {', '.join(spec.augment)})")
    below = BelowHeadError(
        f"the training made the domain worse than its own head: {accuracies}; of "
        f"{evaluation.samples} test pictures chance explains {chance:.1%} of difference",
        fix=f"{', '.join(advice)}, and train again, overwriting this checkpoint; the method head "
        "is the head alone",
    )
    if few:  # the adaptors have hardly begun
        below.settings = (f"train.epochs={_enough_epochs(recipe, steps)}",)
        return below
    gentler(below, recipe)
    # A lower rate needs more steps for the same way.
    below.settings += (f"train.epochs={2 * spec.epochs}",)
    return below


def conclusion(
    recipe: Recipe,
    evaluation: Evaluation,
    head_accuracy: float,
    history: History,
    *,
    steps: int,
    classes: Sequence[str],
) -> str:
    """Return for people what a training reached: against its head, at which share, by which gates.

    It ends with what to try next, if the training itself shows something to try. ``steps``: of the
    whole training. ``classes``: their names.
    """
    gained = 100 * (evaluation.accuracy - head_accuracy)
    chance = 100 * chance_of(evaluation, head_accuracy)
    side = "above" if gained >= 0 else "below"
    sentences = [
        f"{abs(gained):.1f} points {side} the head alone; by chance two such tests differ by up to "
        f"{chance:.1f}."
    ]
    scores = evaluation.confusion.scores(classes)
    if missed := [score.name for score in scores if score.recall == 0]:
        sentences.append(f"No test picture was recognised of: {first_few(missed, 5)}.")
    if rates := evaluation.gate_rates:
        sentences += _of_gates(recipe, evaluation.executed_share, rates)
    return " ".join([*sentences, *_next(recipe, evaluation, history, steps)])


def _of_gates(recipe: Recipe, share: float, rates: Mapping[str, float]) -> list[str]:
    decide = [name for name, rate in rates.items() if DECIDES <= rate <= 1 - DECIDES]
    always = [name for name, rate in rates.items() if rate > 1 - DECIDES]
    never = [name for name, rate in rates.items() if rate < DECIDES]
    parts = [
        f"{word}: {', '.join(names)}"
        for word, names in (("open for all but a few", always), ("closed for all but a few", never))
        if names
    ]
    return [
        f"{share:.0%} of the backbone runs for an average picture, asked for were "
        f"{recipe.train.budget:.0%}.",
        f"On the test pictures, {len(decide)} of {len(rates)} gates decide by picture"
        + (f" ({'; '.join(parts)})." if parts else "."),
    ]


def _next(recipe: Recipe, evaluation: Evaluation, history: History, steps: int) -> list[str]:
    """Return what the training itself shows to try, most telling first, at most one thing."""
    spec = recipe.train
    if evaluation.gate_rates and evaluation.executed_share > spec.budget + OVER:
        if steps < FEW_STEPS:
            epochs = _enough_epochs(recipe, steps)
            return [f"In {steps} steps gates hardly learn: --set train.epochs={epochs}."]
        if (weight := 3 * spec.budget_weight) <= MAX_BUDGET_WEIGHT:
            return [f"To come nearer to the budget: --set train.budget_weight={weight:g}."]
    if history.validation and history.epoch == len(history.epochs) > 1:
        return [
            f"The last epoch was the best; more may help: --set train.epochs={2 * spec.epochs}."
        ]
    return []


def _enough_epochs(recipe: Recipe, steps: int) -> int:
    """Return the epochs of twice ``FEW_STEPS``, where the recipe's own took ``steps``."""
    return math.ceil(recipe.train.epochs * 2 * FEW_STEPS / steps)


def chance_of(evaluation: Evaluation, head_accuracy: float) -> float:
    """Return by how much two accuracies on as many pictures differ by chance, as a share up to 1.

    Each share counts one more right answer and one more wrong one (Agresti and Caffo, The American
    Statistician 2000). Without them, few pictures that are all answered alike would be certain.
    """
    count = evaluation.samples
    more = [(share * count + 1) / (count + 2) for share in (evaluation.accuracy, head_accuracy)]
    spread = math.sqrt(sum(share * (1 - share) for share in more) / (count + 2))
    return min(1.0, CHANCE * spread * (count + 2) / count)

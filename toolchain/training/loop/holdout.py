"""The validation part: pictures that training never sees and by which it chooses its epoch.

Rules of this file: the part is taken from the training pictures, class by class, by the seed of the
data. So the test pictures are looked at once, when everything is chosen. Without torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from toolchain.core.errors import TrainingError
from toolchain.pictures.decode import Pixels
from toolchain.recipe import Recipe, TrainSpec
from toolchain.training.data.splits import (
    DomainData,
    Indices,
    Labels,
    Split,
    checked_rows,
)

if TYPE_CHECKING:
    from toolchain.training.loop.evaluation import Evaluation

SHARE = 0.1
LEAST = 50
"""With fewer pictures the choice would be chance: the error of a share is then above 7 points."""
_STREAM = 4  # the number of its random stream, beside those of ``augment``


@dataclass(frozen=True, slots=True)
class RowsOfSplit:
    """Some rows of another split, as a split of their own."""

    whole: Split
    rows: Labels
    part: str

    @property
    def name(self) -> str:
        """The name of the whole, and which part of it."""
        return f"{self.whole.name}, {self.part}"

    @property
    def labels(self) -> Labels:
        """The labels of these rows, int64 [len]."""
        return self.whole.labels[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Indices) -> tuple[Pixels, Labels]:
        """Return uint8 [B, S, S, 3] and int64 [B]."""
        return self.whole.batch(self.rows[checked_rows(indices, len(self))])


@dataclass(frozen=True, slots=True)
class Parts:
    """The pictures of a training; ``data.train`` is without the ``validation`` part."""

    data: DomainData
    validation: Split | None


def parted(data: DomainData, recipe: Recipe) -> Parts:
    """Return ``data`` with the validation part held out, as ``train.validation`` says.

    A share takes that share of each class, rounded, and leaves at least one picture of each to
    train on. Null takes the part that the data themselves set aside; where they have none, a tenth
    if that gives 50 pictures, else nothing. Raises TrainingError for a share that takes no picture
    at all, and for ``train.patience`` without a part.
    """
    share = recipe.train.validation
    if share is None and data.validation is not None:
        return Parts(data, data.validation)
    rows = _chosen(data.train.labels, SHARE if share is None else share, recipe.data.seed)
    # Nobody asked for a part; one by which nothing can be chosen is not taken.
    if share is None and len(rows) < LEAST:
        rows = rows[:0]
    if share and not len(rows):
        raise TrainingError(
            f"expected pictures for the validation part, got none: {share:g} of "
            f"{len(data.train)} pictures in {len(data.classes)} classes",
            fix="raise train.validation, or set it to 0",
        )
    if not len(rows):
        if recipe.train.patience is not None:
            raise TrainingError(
                "expected a validation part for train.patience, got none: "
                f"{len(data.train)} pictures to train on",
                fix="set train.validation to a share such as 0.2, or train.patience to null",
            )
        return Parts(data, None)
    remaining = np.setdiff1d(np.arange(len(data.train)), rows)
    train, validation = (
        RowsOfSplit(data.train, remaining, "trained"),
        RowsOfSplit(data.train, rows, "validation"),
    )
    return Parts(replace(data, train=train), validation)


def _chosen(labels: Labels, share: float, seed: int) -> Labels:
    """Return the held out rows, rising: of each class its share, and never all of it."""
    order = np.random.default_rng([seed, _STREAM]).permutation(len(labels))
    # One empty entry, as numpy joins no empty list.
    chosen = [np.empty(0, np.int64)]
    for label in np.unique(labels):
        own = order[labels[order] == label]
        chosen.append(own[: min(round(share * len(own)), len(own) - 1)])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def score(evaluation: Evaluation, spec: TrainSpec) -> float:
    """Return how good an epoch is by its ``evaluation`` of the validation part; more is better.

    It is the accuracy, balanced where the loss is, less what the budget's loss says of the share
    that is above the budget. Without that, an early epoch whose gates are still open would win.
    """
    plain = spec.class_weights == "none"
    accuracy = evaluation.accuracy if plain else evaluation.balanced_accuracy
    above = max(0.0, evaluation.executed_share - spec.budget) if evaluation.gate_rates else 0.0
    return accuracy - spec.budget_weight * above**2

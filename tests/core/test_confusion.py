"""Confusion: its figures are those of scikit-learn, and nothing divides by nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    precision_recall_fscore_support,
)

from toolchain.core.confusion import Confusion

CLASSES = 4
PAIRS = st.lists(
    st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), min_size=1, max_size=60
)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.filterwarnings("ignore:A single label was found")
@given(PAIRS)
def test_its_figures_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    """Law: counts, recall, precision and balanced accuracy agree with a second implementation."""
    labels, answers = zip(*pairs, strict=True)
    confusion = Confusion.of(labels, answers, CLASSES)
    every = list(range(CLASSES))
    assert confusion.table() == confusion_matrix(labels, answers, labels=every).tolist()
    assert confusion.pictures == len(pairs)
    assert all(count > 0 for _, _, count in confusion.cells)
    assert confusion.cells == tuple(sorted(confusion.cells))
    assert confusion.accuracy == pytest.approx(np.mean(np.array(labels) == np.array(answers)))
    assert confusion.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, answers))
    precision, recall, _, support = precision_recall_fscore_support(
        labels, answers, labels=every, zero_division=np.nan
    )
    for score, p, r, count in zip(
        confusion.scores("abcd"), precision, recall, support, strict=True
    ):
        assert score.pictures == count
        assert (score.recall is None) == np.isnan(r)
        assert (score.precision is None) == np.isnan(p)
        assert score.recall is None or score.recall == pytest.approx(r)
        assert score.precision is None or score.precision == pytest.approx(p)


def test_a_score_names_the_class_that_a_class_is_taken_for() -> None:
    confusion = Confusion(3, ((0, 0, 5), (0, 2, 3), (1, 1, 4)))
    bolt, nut, ring = confusion.scores(("bolt", "nut", "ring"))
    assert bolt.mistaken_for == ("ring", 3)
    assert (bolt.recall, bolt.precision) == (5 / 8, 1.0)
    assert nut.mistaken_for is None
    assert (ring.pictures, ring.recall, ring.precision) == (0, None, 0.0)
    assert confusion.balanced_accuracy == (5 / 8 + 1) / 2

"""Answers: probabilities, and an outcome picture by picture."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.support.stripes import RECIPE
from toolchain.device.runtime.answers import Domain, Outcome, predictions, probabilities

CLASSES = ("across", "down", "patch")
DOMAIN = Domain(
    "stripes",
    "1.0",
    "sha256:" + "0" * 64,
    CLASSES,
    RECIPE.preprocess,
    ("block00", "block02"),
    100,
    0,
    MappingProxyType({}),
)
LOGITS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.just(3)),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


@given(LOGITS)
def test_probabilities_sum_to_one_and_keep_the_order(logits: Any) -> None:
    """Law: for any finite logits, however large."""
    chances = probabilities(logits)
    assert chances.dtype == np.float32
    assert chances.shape == logits.shape
    assert ((chances >= 0) & (chances <= 1)).all()
    assert np.allclose(chances.sum(axis=1), 1, atol=1e-6)
    best = chances[np.arange(len(logits)), logits.argmax(axis=1)]
    assert (best == chances.max(axis=1)).all()


@given(LOGITS, st.data())
def test_predictions_are_the_outcome_row_by_row(logits: Any, data: st.DataObject) -> None:
    gates = data.draw(arrays.arrays(np.bool_, (len(logits), 2)))
    answers = predictions(Outcome(logits, gates, DOMAIN.release, 1.5), DOMAIN)
    assert len(answers) == len(logits)
    for row, one in enumerate(answers):
        assert one.index == int(logits[row].argmax())
        assert one.label == CLASSES[one.index]
        assert one.probability == probabilities(logits)[row, one.index]
        assert np.array_equal(one.logits, logits[row])
        assert one.gates == dict(zip(DOMAIN.gates, gates[row].tolist(), strict=True))
        assert (one.domain, one.release, one.ms) == ("stripes", DOMAIN.release, 1.5)
        assert all(type(value) is bool for value in one.gates.values())


def test_a_domain_without_gates_predicts_without_them() -> None:
    domain = dataclasses.replace(DOMAIN, gates=())
    outcome = Outcome(np.zeros((2, 3), np.float32), np.zeros((2, 0), np.bool_), domain.release, 0.0)
    assert [one.gates for one in predictions(outcome, domain)] == [{}, {}]


def test_values_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DOMAIN.name = "other"  # type: ignore[misc]

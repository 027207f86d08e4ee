"""The budget: what the loss is, where it pushes, and how the schedules move."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.support import toys
from toolchain.training.adapt.loss import budget_loss, training_loss
from toolchain.training.loop.schedule import (
    OPEN_UNTIL,
    TIGHT_FROM,
    WARM_UP,
    budget_at,
    lr_factor,
)

shares = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=9)
rates = st.floats(0.0625, 1, width=32)


@given(share=shares, budget=rates)
def test_the_budget_is_a_mean_not_a_limit_per_sample(share: list[float], budget: float) -> None:
    """Law: the loss depends on the batch's mean share alone, and is zero exactly at the budget."""
    mean = torch.tensor(share).mean()
    spread = budget_loss(torch.tensor(share), budget=budget)
    torch.testing.assert_close(spread, budget_loss(mean[None], budget=budget))
    assert float(budget_loss(torch.full((4,), budget), budget=budget)) < 1e-12


@pytest.mark.parametrize(("budget", "sign"), [(0.2, 1), (1.0, -1)])
def test_the_budget_pushes_gates_towards_it(budget: float, sign: int) -> None:
    """Too expensive: biases must fall (positive gradient). Too cheap: they must rise."""
    model = toys.attached("plain")
    model.train()
    model.generator = torch.Generator().manual_seed(0)
    for _, gate in model.gates():
        gate.learn(model.generator)
    share = model.executed_share(model.trace(toys.pictures("plain", 64)))
    torch.autograd.backward(budget_loss(share, budget=budget))
    for site in ("block00", "block02"):
        slope = model.domain.get_parameter(f"{site}.gate.bias").grad
        assert slope is not None
        assert sign * float(slope) > 0


def test_the_loss_is_cross_entropy_plus_the_weighted_budget() -> None:
    logits, labels = torch.randn(6, 4), torch.arange(6) % 4
    share = torch.full((6,), 0.9)
    loss = training_loss(logits, labels, share, budget=0.5, weight=3.0)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels) + 3 * 0.4**2)


@given(done=st.floats(0, 1), budget=rates)
def test_schedules_stay_in_their_range(done: float, budget: float) -> None:
    assert 0 <= lr_factor(done) <= 1
    present = budget_at(done, budget)
    assert (present is None) == (done < OPEN_UNTIL)
    assert present is None or budget <= present <= 1


def test_schedules_start_peak_and_end_as_documented() -> None:
    assert 0 < lr_factor(0) < 0.02
    assert math.isclose(lr_factor(WARM_UP), 1)
    assert lr_factor(1) < 1e-6
    assert budget_at(OPEN_UNTIL, 0.5) == 1
    assert budget_at(TIGHT_FROM, 0.5) == budget_at(1, 0.5) == 0.5

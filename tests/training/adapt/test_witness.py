"""The witness tells code by what it computes, wherever features come from."""

from __future__ import annotations

import torch
from torch import nn

from tests.support import toys
from toolchain.training.adapt.witness import PLACES, TOLERANCE, difference, witness

SHAPE = (3, 16, 16)


def test_the_witness_is_the_same_again_and_touches_nothing() -> None:
    net = toys.backbone("plain").train()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    first = witness(net, SHAPE, "fc")
    assert first == witness(net, SHAPE, "fc")
    assert 0 < len(first) <= PLACES
    assert any(first)
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in state.items())


def test_features_are_those_before_the_head_or_the_answer_itself() -> None:
    head = nn.Linear(40, 3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 40), head).eval()
    before = witness(net, (3, 2, 2), "2")
    assert len(before) == PLACES
    nn.init.zeros_(head.weight)  # a domain's head replaces it
    assert witness(net, (3, 2, 2), "2") == before
    assert len(witness(net, (3, 2, 2), None)) == 3


def test_rounding_is_no_difference_and_another_activation_is() -> None:
    net = toys.backbone("plain").eval()
    before = witness(net, SHAPE, "fc")
    assert difference(before, tuple(value * (1 + 1e-4) for value in before)) < TOLERANCE
    net.get_submodule("stem").register_forward_hook(lambda _, __, y: nn.functional.silu(y))
    assert difference(before, witness(net, SHAPE, "fc")) > TOLERANCE
    assert difference(before, before[1:]) > TOLERANCE

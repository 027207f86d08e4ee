"""Overrides folded into a copy of the backbone: the copy answers as the model."""

from __future__ import annotations

import pytest
import torch

from tests.support import toys
from toolchain.training.adapt.attached import attach, weights_digest
from toolchain.training.adapt.folded import overrides_folded, slots_alone
from toolchain.training.adapt.methods import REGISTRY

CHANGING = [name for name in REGISTRY if name not in ("da3", "da2", "head")]


@pytest.mark.parametrize("method", CHANGING)
@torch.no_grad()
def test_the_folded_copy_answers_as_the_model(method: str) -> None:
    """Law: slots on the changed copy = the model; the frozen backbone is neither moved nor used."""
    selection = {"blocks.0.conv1.weight": (0, 2)} if method == "sparse" else None
    net = toys.backbone("plain")
    model = attach(
        net, method=method, classes=3, input_shape=(3, 12, 12), rank=4, selection=selection
    )
    digest = weights_digest(model)
    for parameter in model.domain.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.02)
    images = toys.pictures("plain", 4)
    copy = overrides_folded(model)
    assert copy is not None
    torch.testing.assert_close(copy(images), model(images))
    assert copy.overrides is None
    assert weights_digest(copy) != digest
    assert weights_digest(model) == digest
    assert weights_digest(slots_alone(model)) == digest
    plain = slots_alone(model)(images)
    assert not torch.allclose(plain, model(images))


def test_slots_alone_need_no_folding() -> None:
    assert overrides_folded(toys.attached("plain")) is None

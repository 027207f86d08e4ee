"""A training step of a toy, with gates forced."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.support import toys
from toolchain.training.adapt.attached import AttachedModel
from toolchain.training.adapt.loss import training_loss
from toolchain.training.lean.ledger import Stored, stored

BATCH = 6


def forced(model: AttachedModel, rows: int) -> AttachedModel:
    """The model in training, each gate open for the first ``rows`` pictures."""
    model.train()
    decision = (torch.arange(BATCH) < rows).float().unsqueeze(1)
    model.forced = dict.fromkeys(model.sites, decision)
    return model


def step(model: AttachedModel, images: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    """The forward and the loss."""

    def run() -> Tensor:
        trace = model.trace(images, maps=False)
        assert trace.logits is not None
        share = model.executed_share(trace)
        return training_loss(trace.logits, labels, share, budget=0.6, weight=1.0)

    return run


def measured(model: AttachedModel, name: str, rows: int = BATCH) -> Stored:
    """What a step of the toy ``name`` keeps."""
    images, labels = toys.pictures(name, BATCH), torch.zeros(BATCH, dtype=torch.int64)
    return stored(model, step(forced(model, rows), images, labels), ignored=(images, labels))

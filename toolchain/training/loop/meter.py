"""Means and remaining time of a training, from step to step.

Rules of this file: it counts and reports; no training depends on it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from toolchain.training.adapt.attached import Trace
from toolchain.training.adapt.checkpoint import EpochFigures
from toolchain.training.loop.progress import Status

NOTHING: Mapping[str, float] = MappingProxyType({})


class Meter:
    """Sums over the steps of one epoch; an interrupted one begins with the ``sums`` it had."""

    def __init__(self, sums: Mapping[str, float] = NOTHING) -> None:
        self.samples = int(sums.get("samples", 0))
        self.loss, self.right = sums.get("loss", 0.0), sums.get("right", 0.0)
        self.share, self.opened = sums.get("share", 0.0), sums.get("opened", 0.0)

    def add(self, loss: Tensor, labels: Tensor, share: Tensor, trace: Trace) -> None:
        """Add one step: its scalar loss, labels ``[N]``, executed shares ``[N]`` and trace."""
        assert trace.logits is not None
        count = len(labels)
        gates = [decision.detach().mean() for decision in trace.opened.values()]
        self.samples += count
        self.loss += loss.item() * count
        self.right += int((trace.logits.argmax(1) == labels).sum())
        self.share += share.detach().mean().item() * count
        self.opened += (torch.stack(gates).mean().item() if gates else 1.0) * count

    def figures(self, lr: float) -> EpochFigures:
        """Return the means of a finished epoch, whose last step had the rate ``lr``."""
        return EpochFigures(
            lr=lr,
            loss=self.loss / self.samples,
            accuracy=self.right / self.samples,
            executed_share=self.share / self.samples,
        )

    def sums(self) -> dict[str, float]:
        """Return what another meter needs to go on."""
        return dict(vars(self))


class RemainingTime:
    """Estimates the remaining time from the steps since the start of this call."""

    def __init__(self, step: int, *, epochs: int, steps_per_epoch: int) -> None:
        self.first, self.epochs, self.steps_per_epoch = step, epochs, steps_per_epoch
        self.started = time.monotonic()

    def status(self, step: int, meter: Meter) -> Status:
        """Return where a training is after ``step`` steps; some of them are in ``meter``."""
        # A training that was stopped at the end of an epoch goes on without a step.
        per_step = (time.monotonic() - self.started) / max(1, step - self.first)
        count, steps = meter.samples, self.epochs * self.steps_per_epoch
        return Status(
            epoch=(step - 1) // self.steps_per_epoch + 1,
            epochs=self.epochs,
            step=step,
            steps=steps,
            loss=meter.loss / count,
            accuracy=meter.right / count,
            open_share=meter.opened / count,
            executed_share=meter.share / count,
            remaining_s=per_step * (steps - step),
        )

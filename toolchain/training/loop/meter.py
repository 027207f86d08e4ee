"""Means and remaining time of a training, from step to step.

Rules of this file: it counts and reports; no training depends on it.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from toolchain.training.adapt.attached import Trace
from toolchain.training.loop.progress import Status


class Meter:
    """Means over the steps of one epoch, weighted by samples."""

    def __init__(self) -> None:
        self.samples = 0
        self.loss = self.right = self.share = self.opened = 0.0

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


class RemainingTime:
    """Estimates the remaining time from the steps since the start of this call."""

    def __init__(self, step: int, *, epochs: int, steps_per_epoch: int) -> None:
        self.first, self.epochs, self.steps_per_epoch = step, epochs, steps_per_epoch
        self.started = time.monotonic()

    def status(self, step: int, meter: Meter) -> Status:
        """Return where a training is after ``step`` steps, at least one of them in this call."""
        per_step = (time.monotonic() - self.started) / (step - self.first)
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

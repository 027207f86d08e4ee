"""How a training reports its progress.

Rules of this file: training reports to a ``Progress`` and never prints. The command line has one
that draws (``cli/show/progress.py``). No torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from toolchain.training.adapt.checkpoint import EpochFigures

Phase = Literal[
    "data",
    "start",
    "search",
    "model",
    "memory",
    "trial",
    "head",
    "steps",
    "validation",
    "test",
    "gates",
]
"""What a training does, in this order: the pictures are listed, PyTorch starts, ``sparse`` searches
what to update, the model is built, its memory counted, it is exported for trial, its head fitted;
then steps, with a look at the validation part after each epoch, the test, and how often gates are
open."""

Tick = Callable[[int, int], None]
"""Called with what is done of a phase and with all of it, in pictures or steps."""


@dataclass(frozen=True, slots=True)
class Status:
    """Where training is after a step; means are over the epoch so far.

    ``epoch`` counts from 1, ``step`` from 1 over the whole training. ``open_share`` is the share of
    gates that were open, ``executed_share`` that of the backbone's multiply-adds that ran.
    ``figures``: of a finished epoch, what the checkpoint will say of it; ``best``: the best epoch
    so far by the validation part.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float
    open_share: float
    executed_share: float
    remaining_s: float
    figures: EpochFigures | None = None
    best: int | None = None


def unheard(done: int, total: int) -> None:
    """Be a ``Tick`` that drops everything."""


class Progress(Protocol):
    """What training calls; an implementation may raise to stop it."""

    def phase(self, phase: Phase, done: int, total: int) -> None:
        """Hear how far a phase is; ``total`` is 0 where nobody can tell."""

    def step(self, status: Status) -> None:
        """Hear of one finished step."""

    def epoch(self, status: Status) -> None:
        """Hear of a finished epoch: means over all of it."""

    def close(self) -> None:
        """Hear that training ended, in whatever way."""


class Quiet:
    """Drops everything."""

    def phase(self, phase: Phase, done: int, total: int) -> None:
        """Do nothing."""

    def step(self, status: Status) -> None:
        """Do nothing."""

    def epoch(self, status: Status) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

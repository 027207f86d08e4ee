"""Telling how training goes.

Rules of this file: training reports to a ``Progress`` and never prints; ``Quiet`` drops everything,
``Terminal`` writes to the stream that it is given and nowhere else. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TextIO

BAR_WIDTH = 20


@dataclass(frozen=True, slots=True)
class Status:
    """Where training is after a step; means are over the epoch so far.

    ``epoch`` counts from 1, ``step`` from 1 over the whole training. ``open_share`` is the share of
    gates that were open, ``executed_share`` that of the backbone's multiply-adds that ran.
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


class Progress(Protocol):
    """What training calls; an implementation may raise to stop it."""

    def step(self, status: Status) -> None:
        """Hear of one finished step."""

    def epoch(self, status: Status) -> None:
        """Hear of a finished epoch: means over all of it."""

    def close(self) -> None:
        """Hear that training ended, in whatever way."""


class Quiet:
    """Drops everything."""

    def step(self, status: Status) -> None:
        """Do nothing."""

    def epoch(self, status: Status) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Terminal:
    """A bar that redraws itself on a terminal; one line per epoch on anything else."""

    def __init__(self, stream: TextIO, label: str = "") -> None:
        self.stream = stream
        self.label = f"{label}: " if label else ""
        self.live = stream.isatty()
        self._drawn = 0

    def step(self, status: Status) -> None:
        """Redraw the bar, on a terminal only."""
        if self.live:
            done = BAR_WIDTH * status.step // status.steps
            bar = "#" * done + "-" * (BAR_WIDTH - done)
            self._draw(f"{self.label}[{bar}] {describe(status)}")

    def epoch(self, status: Status) -> None:
        """Leave one line that stays."""
        self._draw(f"{self.label}{describe(status)}")
        self._end_line()

    def close(self) -> None:
        """Leave the cursor on a line of its own."""
        if self._drawn:
            self._end_line()

    def _draw(self, line: str) -> None:
        self.stream.write(("\r" if self.live else "") + line.ljust(self._drawn))
        self.stream.flush()
        self._drawn = len(line)

    def _end_line(self) -> None:
        self.stream.write("\n")
        self.stream.flush()
        self._drawn = 0


def describe(status: Status) -> str:
    """Return a status as one line for people."""
    minutes, seconds = divmod(round(status.remaining_s), 60)
    return (
        f"epoch {status.epoch}/{status.epochs}  loss {status.loss:.3f}  "
        f"accuracy {status.accuracy:.1%}  gates open {status.open_share:.0%}  "
        f"executed {status.executed_share:.0%}  left {minutes}:{seconds:02d}"
    )

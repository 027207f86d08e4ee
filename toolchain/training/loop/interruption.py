"""Signals that ask a long work to stop: noted, so that it stops where it is whole.

Rules of this file: it knows nothing of trainings. A handler notes the first signal and raises at
the second one; it does no work.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from toolchain.core.signals import handled

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """Whether a signal asked the process to stop; true in a condition once it did."""

    def __init__(self) -> None:
        self._requested = False

    def __bool__(self) -> bool:
        return self._requested

    def request(self, _signal: int, _frame: FrameType | None) -> None:
        """Note the first signal; a second one means now."""
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Hold back ``SIGNALS`` inside the block of code, which asks whether one came.

    The handlers that were there before come back. A SIGHUP that is ignored (``nohup``) stays so.
    Outside the main thread, where no signal arrives, nothing is installed.
    """
    interrupted = Interruption()
    hang_up_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    ours = [n for n in SIGNALS if not (n is signal.SIGHUP and hang_up_ignored)]
    with handled(ours, interrupted.request):
        yield interrupted

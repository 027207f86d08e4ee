"""Ctrl-C, or a container's SIGTERM, between two steps of work, never in the middle of one.

Rules of this file: the standard library only; the handlers that were there before are put back;
outside the main thread, where signals do not arrive, nothing is installed.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Whether the process was asked to stop; true in a condition once it was."""

    def __init__(self) -> None:
        self._asked = False

    def __bool__(self) -> bool:
        return self._asked

    def ask(self, _signal: int, _frame: FrameType | None) -> None:
        """Note the first signal; a second one means now."""
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Hold Ctrl-C (SIGINT) and SIGTERM back inside the block; the block looks whether one came."""
    held = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    before = {number: signal.signal(number, held.ask) for number in SIGNALS}
    try:
        yield held
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Ctrl-C between two steps of work, never in the middle of one.

Rules of this file: the standard library only; the handler that was there before is put back;
outside the main thread, where signals do not arrive, nothing is installed.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Whether Ctrl-C was pressed; true in a condition once it was."""

    def __init__(self) -> None:
        self._asked = False

    def __bool__(self) -> bool:
        return self._asked

    def ask(self, _signal: int, _frame: FrameType | None) -> None:
        """Note the first Ctrl-C; a second one means now."""
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Hold Ctrl-C (SIGINT) back inside the block; the block looks whether it came."""
    held = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    before = signal.signal(signal.SIGINT, held.ask)
    try:
        yield held
    finally:
        signal.signal(signal.SIGINT, before)

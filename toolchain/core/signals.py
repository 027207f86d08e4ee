"""Signals that a block of code takes in its own way.

Rules of this file: the standard library only. Which signals a caller leaves alone, such as those
that are ignored under ``nohup``, the caller says.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


@contextmanager
def handled(numbers: Iterable[signal.Signals], handler: Handler) -> Iterator[None]:
    """Have ``handler`` take the signals ``numbers`` inside the block of code.

    The handlers that were there before come back. Outside the main thread, where no signal arrives,
    nothing is installed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)

"""Admission: which requests may run now, which wait in line, and which are refused.

Rules of this file: one lock, and no thread of its own. A place that was taken is always given back.
It knows neither HTTP nor models.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from toolchain.device.serve.faults import overloaded


class Admission:
    """``concurrent`` places and a line of ``waiting``; beyond both a request is refused at once."""

    def __init__(self, concurrent: int, waiting: int, patience_s: float) -> None:
        self._places = concurrent
        self._line = waiting
        self._patience_s = patience_s
        self._running = self._waiting = 0
        self._open = True
        self._changed = threading.Condition()

    @property
    def running(self) -> int:
        """How many have a place."""
        return self._running

    @property
    def waiting(self) -> int:
        """How many stand in line."""
        return self._waiting

    @property
    def open(self) -> bool:
        """False once :meth:`close` was called."""
        return self._open

    def close(self) -> None:
        """Refuse every request that comes from now on; those in line still get their turn."""
        with self._changed:
            self._open = False

    @contextmanager
    def turn(self) -> Iterator[float]:
        """Hold a place; yields the seconds waited for it.

        Raises RefusedError (503) if it is closed, if the line is full, and after ``patience_s``.
        """
        begun = time.monotonic()
        with self._changed:
            self._enter()
        try:
            yield time.monotonic() - begun
        finally:
            with self._changed:
                self._running -= 1
                # One place is free, so one of those in line is enough.
                self._changed.notify()

    def _enter(self) -> None:
        if not self._open:
            raise overloaded("the server is stopping")
        if self._running >= self._places and self._waiting >= self._line:
            raise overloaded(
                f"overloaded: {self._running} requests run and {self._waiting} wait; send it again"
            )
        self._waiting += 1
        try:
            free = self._changed.wait_for(self._has_place, self._patience_s)
        finally:
            self._waiting -= 1
        if not free:
            raise overloaded(f"overloaded: no turn came within {self._patience_s:g} s")
        self._running += 1

    def _has_place(self) -> bool:
        return self._running < self._places

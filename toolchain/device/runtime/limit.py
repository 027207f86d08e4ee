"""A time limit that reaches into a running model.

Rules of this file: nothing is killed. When the time is over, the limit calls whatever the runs of
its block asked for: onnxruntime looks at a flag between two operators, and the TensorRT side looks
at :attr:`TimeLimit.over` while it waits. So a run ends within one operator's time, and the session
stays usable.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from toolchain.core.errors import TimeLimitError, UsageError


class TimeLimit:
    """A context whose runs are stopped ``seconds`` after it was entered.

    Pass it to whatever runs the model. One context serves several runs, one after another; their
    time counts together. Raises UsageError for a limit that no timer can wait for: not above zero,
    not a number, or beyond ``threading.TIMEOUT_MAX``.
    """

    def __init__(self, seconds: float) -> None:
        if not 0 < seconds <= threading.TIMEOUT_MAX:
            raise UsageError(
                f"expected a time limit above 0 and up to {threading.TIMEOUT_MAX:.0f} s, "
                f"got {seconds!r}",
                fix="leave it out for none",
            )
        self.seconds = seconds
        self.over = False
        self._actions: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._stop)
        self._timer.daemon = True

    def __enter__(self) -> TimeLimit:
        self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()

    def when_over(self, action: Callable[[], None]) -> None:
        """Call ``action`` in the timer's thread when the time is over; at once if it is already."""
        # Without the lock, an action that comes just as the timer fires would never be called.
        with self._lock:
            if not self.over:
                self._actions.append(action)
                return
        action()

    def stopped(self, what: str) -> TimeLimitError:
        """Return the error of a run of ``what`` that was stopped."""
        return TimeLimitError(
            f"{what}: stopped after its limit of {self.seconds:g} s",
            fix="allow more time, or send fewer pictures at once",
        )

    def _stop(self) -> None:
        with self._lock:
            self.over = True
        # Once `over` is set nobody adds to the list, so it needs no lock here.
        for action in self._actions:
            action()

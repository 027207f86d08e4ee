"""A time limit that reaches into a running model.

Rules of this file: onnxruntime looks at a run's terminate flag between two operators, so a limit
ends a run within one operator's time; nothing is killed and the session stays usable.
"""

from __future__ import annotations

import threading
from types import TracebackType

import onnxruntime as ort

from toolchain.core.errors import TimeLimitError, UsageError


class TimeLimit:
    """A context whose runs are stopped ``seconds`` after it was entered.

    Pass it to :meth:`toolchain.device.runtime.ort.session.Session.run`. One context serves several
    runs, one after another; their time counts together. Raises UsageError for a limit that no timer
    can wait for: not above zero, not a number, or beyond ``threading.TIMEOUT_MAX``.
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
        self.options = ort.RunOptions()
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

    def stopped(self, what: str) -> TimeLimitError:
        """Return the error of a run of ``what`` that was stopped."""
        return TimeLimitError(
            f"{what}: stopped after its limit of {self.seconds:g} s",
            fix="allow more time, or send fewer pictures at once",
        )

    def _stop(self) -> None:
        self.over = True
        self.options.terminate = True

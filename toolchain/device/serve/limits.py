"""What a server takes from anybody: sizes, times and counts.

Rules of this file: values only; a limit that makes no sense is refused when it is set.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from threading import TIMEOUT_MAX

from toolchain.core.errors import UsageError
from toolchain.core.files import MIB

_MAY_BE_ZERO = ("waiting", "grace_s")
# Connections beyond those whose requests run or wait.
_SPARE = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one server; how many pictures one request may hold is the runner's ``max_batch``.

    ``body_bytes``: of a request; ``json_bytes``: of the JSON in it, whose values take some ten
    times as much in memory. ``time_s``: seconds that a request may wait for its turn, and that
    waiting and running may take together. ``concurrent``: inferences that run at once;
    ``waiting``: those in line behind them. ``connections``: see :attr:`connection_limit`.
    ``receive_s``: seconds in which a request must have come as a whole and its answer have left,
    and after which an idle connection is closed. ``grace_s``: seconds that running requests have
    when the server stops.

    Raises UsageError for a limit of 0 or less (``waiting`` and ``grace_s`` may be 0), and for one
    that no timer can wait for.
    """

    body_bytes: int = 64 * MIB
    json_bytes: int = 8 * MIB
    time_s: float = 30.0
    concurrent: int = 2
    waiting: int = 16
    connections: int = 64
    receive_s: float = 30.0
    grace_s: float = 10.0

    @property
    def connection_limit(self) -> int:
        """Connections open at once; further ones are accepted when one closes.

        ``connections``, and always enough that health and refusals are answered while all places
        are taken.
        """
        return max(self.connections, self.concurrent + self.waiting + _SPARE)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for item in fields(self):
            value = getattr(self, item.name)
            nothing = value == 0 and item.name in _MAY_BE_ZERO
            if not (nothing or 0 < value <= TIMEOUT_MAX):
                raise UsageError(
                    f"limit {item.name}: expected more than 0 and at most {TIMEOUT_MAX:.0f}, "
                    f"got {value}",
                    fix="leave it out",
                )

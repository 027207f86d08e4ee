"""From an error to an HTTP status: the one table.

Rules of this file: an error is looked up by its nearest class in the table. The messages of some
errors name files of this machine, or come from a fault of the server itself. For those the client
reads a fixed sentence, and the log has the rest. Nothing here writes to a socket.
"""

from __future__ import annotations

from http import HTTPStatus

from toolchain.core import errors
from toolchain.core.errors import Da3Error

_INTERNAL = "the server failed; its log says how"

# Status, and the sentence for the client where the error's own message is not for them.
_TABLE: dict[type[Exception], tuple[HTTPStatus, str]] = {
    errors.DataError: (HTTPStatus.BAD_REQUEST, ""),
    errors.UsageError: (HTTPStatus.BAD_REQUEST, ""),
    errors.UnknownNameError: (HTTPStatus.NOT_FOUND, ""),
    errors.LoadedError: (HTTPStatus.CONFLICT, ""),
    errors.SessionLimitError: (HTTPStatus.CONFLICT, ""),
    errors.TimeLimitError: (HTTPStatus.GATEWAY_TIMEOUT, ""),
    errors.ClosedError: (HTTPStatus.SERVICE_UNAVAILABLE, "the server is stopping"),
    errors.BundleError: (
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "the model's bundle failed verification; the server's log says where",
    ),
    errors.BackboneMismatchError: (
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "the model's bundle belongs to another backbone than the server's",
    ),
    errors.OutOfMemoryError: (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "the server has not enough memory for that",
    ),
    errors.SelftestError: (
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "the model failed its self-test on this machine; the server's log says where",
    ),
    Exception: (HTTPStatus.INTERNAL_SERVER_ERROR, _INTERNAL),
}


class RefusedError(Exception):
    """An HTTP answer that says no, raised where it is found; it never leaves this room.

    ``hidden``: the message stands for another, which the log should have.
    """

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        headers: dict[str, str] | None = None,
        *,
        hidden: bool = False,
    ) -> None:
        self.status = status
        self.message = message
        self.headers = headers or {}
        self.hidden = hidden
        super().__init__(message)


def refusal(err: Exception) -> RefusedError:
    """Return the answer that tells a client of ``err``."""
    if isinstance(err, RefusedError):
        return err
    status, sentence = next(_TABLE[kind] for kind in type(err).__mro__ if kind in _TABLE)
    message = sentence or (err.message if isinstance(err, Da3Error) else _INTERNAL)
    return RefusedError(status, message, hidden=bool(sentence))


def overloaded(message: str) -> RefusedError:
    """Return the answer for a request that may be sent again in a second (RFC 9110, 15.6.4)."""
    return RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, message, {"Retry-After": "1"})

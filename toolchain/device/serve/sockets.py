"""The sockets: waitress, narrowed where it would take more than it must.

Rules of this file: imported only when a server is made, as it needs the extra ``serve``. It knows
no protocol but HTTP/1.1's framing. What is changed of waitress 3, and why:

* Its errors are plain text; a client of the protocol reads ``{"error": ...}``.
* Chunked bodies are refused (411): their length is not known before they have come, and waitress
  reads a chunk's size line of any length, in time that grows with its square.
* A body that is too large is refused before ``100 Continue`` is sent, not after.
* Its time limit is for silence only, so a client that sends a byte now and then keeps its
  connection for ever. So does one that takes no answer, because waitress closes only a connection
  that can be written to. Here a request must have come, and an answer have left, as a whole within
  the limit.
* After an error it closes a connection with bytes unread, which resets it, and the client may never
  see the error (RFC 9112, section 9.6): here the rest is read and dropped first.

Waitress's queue of requests has no limit of its own. A connection has one request in it at most,
and there is a thread for each connection, so none waits there. Which requests may run is decided by
:mod:`toolchain.device.serve.admission`, and health is answered meanwhile.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from socket import SHUT_WR, socket
from typing import Any

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, ThreadedTaskDispatcher
from waitress.utilities import Error

from toolchain.device.serve.limits import Limits

_HEADER_BYTES = 16 * 1024
# What waitress counts besides connections: the listening socket and its own pipe.
_OWN_SOCKETS = 2


class _LengthRequiredError(Error):  # type: ignore[misc]  # waitress has no types
    code = HTTPStatus.LENGTH_REQUIRED.value
    reason = HTTPStatus.LENGTH_REQUIRED.phrase


class _StrictParser(HTTPRequestParser):  # type: ignore[misc]
    error: Error | None

    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except ValueError as err:  # a length of thousands of digits
            raise ParsingError("Content-Length is invalid") from err

    def received(self, data: bytes) -> int:
        taken: int = super().received(data)
        # HTTP/1.0 leaves the header where it was and reads no body.
        if self.error is None and (self.chunked or "TRANSFER_ENCODING" in self.headers):
            self.error = _LengthRequiredError("expected a Content-Length, got a Transfer-Encoding")
            self.completed = True
        return taken


class _ErrorTask(ErrorTask):  # type: ignore[misc]
    def execute(self) -> None:
        fault = self.request.error
        body = json.dumps({"error": f"{fault.reason}: {fault.body}"}).encode("ascii")
        self.status = f"{fault.code} {fault.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.channel.lingers = True
        self.write(body)


class _Channel(HTTPChannel):  # type: ignore[misc]
    parser_class = _StrictParser
    error_task_class = _ErrorTask
    # When the request that is coming in, or the answer that is going out, began.
    begun = 0.0
    # Whether the rest of a request is to be read and dropped, and whether that is going on.
    lingers = draining = False

    def received(self, data: bytes) -> bool:
        if self.draining:
            return False
        before = self.request
        taken: bool = super().received(data)
        if self.request is not before:
            self.begun = time.time()
        return taken

    def send_continue(self) -> None:
        if self.request.error is None:
            super().send_continue()

    def handle_close(self) -> None:
        if not self.lingers or self.draining:
            self.hang_up()
            return
        self.draining, self.will_close, self.begun = True, False, time.time()
        with suppress(OSError):
            self.socket.shutdown(SHUT_WR)

    def hang_up(self) -> None:
        """Close the connection now."""
        super().handle_close()

    def write_soon(self, data: bytes) -> int:
        # The answer, and a request that waited behind it, have their time from here on.
        self.begun = time.time()
        written: int = super().write_soon(data)
        return written

    def is_late(self, now: float, limit_s: float) -> bool:
        """Whether a request, an answer or silence has taken longer than ``limit_s``.

        While a request runs, waitress reads nothing and no time counts.
        """
        if self.requests:
            return False
        moving = self.draining or self.request is not None or self.total_outbufs_len > 0
        return now - (self.begun if moving else self.last_activity) > limit_s


class Sockets(TcpWSGIServer):  # type: ignore[misc]
    """Waitress on a bound socket, with ``limits``."""

    channel_class = _Channel

    def __init__(self, application: Any, bound: socket, limits: Limits) -> None:
        self._receive_s = limits.receive_s
        adjustments = Adjustments(
            sockets=[bound],
            threads=limits.connection_limit,
            ident=None,
            connection_limit=limits.connection_limit + _OWN_SOCKETS,
            # waitress refuses from this size on.
            max_request_body_size=limits.body_bytes + 1,
            max_request_header_size=_HEADER_BYTES,
            # Ours comes first.
            channel_timeout=round(limits.receive_s) + 60,
            # select() takes no file above 1023.
            asyncore_use_poll=True,
            log_socket_errors=False,
        )
        super().__init__(
            application,
            _sock=bound,
            dispatcher=ThreadedTaskDispatcher(),
            adj=adjustments,
            bind_socket=False,
            sockinfo=(bound.family, bound.type, bound.proto, bound.getsockname()),
        )
        self.task_dispatcher.set_thread_count(limits.connection_limit)

    def turn(self) -> None:
        """Handle what the sockets have, waiting a second at most; then close what is too slow."""
        wasyncore.loop(timeout=1, use_poll=True, map=self._map, count=1)
        now = time.time()
        for channel in list(self.active_channels.values()):
            if channel.is_late(now, self._receive_s):
                channel.hang_up()

    def call_soon(self, action: Callable[[], None]) -> None:
        """Let the thread that turns call ``action``."""
        self.trigger.pull_trigger(action)

    def stop_listening(self) -> None:
        """Close the listening socket; connections stay."""
        wasyncore.dispatcher.close(self)

    @property
    def is_busy(self) -> bool:
        """Whether a request runs or an answer has not left yet."""
        channels = self.active_channels.values()
        return any(channel.requests or channel.total_outbufs_len for channel in channels)

    def end(self, timeout_s: float) -> None:
        """Close every connection and let the threads go; those that still run are left alone."""
        for channel in list(self.active_channels.values()):
            channel.hang_up()
        self.task_dispatcher.shutdown(timeout=timeout_s)

    def close_trigger(self) -> None:
        """Close the pipe that wakes :meth:`turn`, after :meth:`end`.

        A thread that still runs finds its connection closed and wakes nobody.
        """
        self.trigger.close()

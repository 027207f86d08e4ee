"""The server: an address, a thread for its sockets, and an orderly end.

Rules of this file: the socket is bound when the server is made, so a taken port is an error before
anything starts. To stop, the server is no longer ready and closes the listening socket. Running
requests have ``grace_s`` seconds to end; then every connection is closed. The runner is not closed
here.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from toolchain.core.errors import MissingPackageError, RunError, UsageError
from toolchain.core.timing import Notify
from toolchain.device.serve.app import App
from toolchain.device.serve.limits import Limits
from toolchain.device.serve.repository import NONE

if TYPE_CHECKING:
    from toolchain.device.runtime.runner import Runner
    from toolchain.device.serve.sockets import Sockets


_LOOK_S = 0.5
_TURN_S = 1e-3


class Server:
    """A server of ``runner``'s domains; a context manager that starts and stops it.

    ``port`` 0 takes a free one, see :attr:`url`. ``repository``: the folder whose bundles clients
    may see, None for none. ``refused``: bundles that were not loaded before, by the names that they
    would have, and why, as clients may read it. ``control``: whether they may load and unload.
    Raises UsageError for an address or a folder that is none, RunError where the address cannot be
    bound, MissingPackageError without the extra ``serve``.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        repository: Path | None = None,
        refused: Mapping[str, str] = NONE,
        control: bool = False,
        limits: Limits | None = None,
    ) -> None:
        self._limits = limits or Limits()
        bound = _bind(host, port)
        try:
            self._host, self._port = bound.getsockname()[:2]
            self.app = App(
                runner,
                self._limits,
                repository=repository,
                refused=refused,
                control=control,
                loopback=not is_exposed(self._host),
            )
            self._sockets = _sockets(self.app, bound, self._limits)
        except BaseException:
            bound.close()
            raise
        self._stopping = self._stopped = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="da3-serve", daemon=True)

    @property
    def url(self) -> str:
        """Where it listens, such as ``http://127.0.0.1:8000``."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._port)

    def start(self) -> None:
        """Answer requests from now on, in threads of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Stop as the rules of this file say; returns when it is done, also when called again."""
        self.app.close()
        started = self._thread.ident is not None
        with self._lock:
            first, self._stopped = not self._stopped, True
        if first and started:
            self._sockets.call_soon(self._begin_to_stop)
        if started:
            self._thread.join()
        elif first:
            self._end(time.monotonic())
        if first:
            # Not by the thread that turns: it may end before the call that wakes it is done.
            self._sockets.close_trigger()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        err: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _run(self) -> None:
        while not self._stopping:
            self._sockets.turn()
        self._end(time.monotonic() + self._limits.grace_s)

    def _begin_to_stop(self) -> None:
        self._stopping = True

    def _end(self, deadline: float) -> None:
        self._sockets.stop_listening()
        while self._sockets.is_busy and time.monotonic() < deadline:
            self._sockets.turn()
        self._sockets.end(timeout_s=1)


def serve(
    runner: Runner,
    *,
    port: int,
    stop: threading.Event,
    host: str = "127.0.0.1",
    repository: Path | None = None,
    refused: Mapping[str, str] = NONE,
    control: bool = False,
    limits: Limits | None = None,
    notify: Notify | None = None,
) -> None:
    """Serve until ``stop`` is set, then end in order; ``notify`` gets the URL once it listens.

    Set ``stop`` from a signal's handler or another thread. Parameters and errors as for
    :class:`Server`.
    """
    with Server(
        runner,
        host=host,
        port=port,
        repository=repository,
        refused=refused,
        control=control,
        limits=limits,
    ) as server:
        if notify is not None:
            notify(server.url)
        # Python runs a signal's handler once the main thread wakes, and the system may hand the
        # signal to another thread, which wakes nobody: so it looks again from time to time.
        while not stop.wait(_LOOK_S):
            pass


def share_the_interpreter() -> None:
    """Let threads of this process take turns each millisecond, so that no parser keeps others long.

    Python's own 5 ms add up: an answer to health takes several turns, and each waits for every
    thread that parses. It changes the whole process, so only a program's edge calls it.
    """
    sys.setswitchinterval(_TURN_S)


def is_exposed(host: str) -> bool:
    """Return whether other machines may reach a server that listens on the address ``host``."""
    return not ip_address(host).is_loopback


def _bind(host: str, port: int) -> socket.socket:
    """Return a bound socket for an address or a name."""
    if not 0 <= port < 2**16:
        raise UsageError(f"expected a port from 0 to 65535, got {port}", fix="0 takes a free one")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
    except (OSError, UnicodeError) as err:
        raise UsageError(f"expected an address to listen on, got {host!r}: {err}") from err
    try:
        # A restart shall not wait for connections of the last server to time out.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen()
    except OSError as err:
        bound.close()
        raise RunError(
            f"cannot listen on {host}, port {port}: {err.strerror}",
            fix="choose another port; 0 takes a free one",
        ) from err
    return bound


def _sockets(app: App, bound: socket.socket, limits: Limits) -> Sockets:
    try:
        from toolchain.device.serve.sockets import Sockets
    except ModuleNotFoundError as err:
        raise MissingPackageError("waitress", "serving", "serve") from err
    return Sockets(app, bound, limits)

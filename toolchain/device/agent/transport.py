"""Bytes from a repository: over HTTP, from a folder or a USB stick.

Rules of this file: it moves bytes and trusts none of them. A download goes on where the last one
ended (RFC 9110, section 14: Range), so a link that is cut again and again costs no byte twice. Each
file has a size and a digest before it is asked for; more bytes are not read, and other bytes are
removed. A link that stalls or drips is left. Who else uses the link is spared by ``bandwidth``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass, url2pathname

import urllib3
from tuf.api.exceptions import DownloadHTTPError, SlowRetrievalError
from tuf.ngclient.fetcher import FetcherInterface
from urllib3.exceptions import ConnectTimeoutError, HTTPError, IncompleteRead
from urllib3.exceptions import TimeoutError as LinkTimeoutError

from toolchain.core.errors import (
    RepositoryError,
    SlowRepositoryError,
    StorageError,
    UsageError,
    VerificationError,
)
from toolchain.core.files import open_limited, refused
from toolchain.core.sealed import file_digest

_CHUNK_BYTES = 1 << 16
_WINDOW_S, _SHOW_S = 10.0, 1.0
_NOT_FOUND, _PARTIAL, _NO_SUCH_RANGE = 404, 206, 416
_LARGEST_BYTES = 8 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferLimits:
    """How long to wait for a repository, and how much of the link to take.

    ``connect_s``, ``stall_s``: seconds for a connection, and between two pieces of an answer.
    ``least_bytes_per_s``: a link that is slower over ten seconds is left. ``attempts``: in a row
    that bring no byte; ``pause_s``: before the second of them, doubled for each further one.
    ``bandwidth``: the most bytes in a second, None for all.
    """

    connect_s: float = 10.0
    stall_s: float = 30.0
    least_bytes_per_s: float = 1024.0
    attempts: int = 5
    pause_s: float = 1.0
    bandwidth: float | None = None


DEFAULT = TransferLimits()


class Transport(FetcherInterface):
    """Reads a repository for python-tuf, and downloads files that may be cut off under way.

    ``wait`` sleeps for so many seconds; an agent that shall stop raises out of it.
    """

    def __init__(
        self, limits: TransferLimits = DEFAULT, *, wait: Callable[[float], None] = time.sleep
    ) -> None:
        self._limits, self._wait = limits, wait
        self._pools: dict[str, urllib3.PoolManager] = {}
        self.received_bytes = 0
        """Bytes that came over the link so far, counted as often as they came."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        """Yield the bytes of ``url`` for python-tuf, in the errors that it expects."""
        try:
            yield from self._continued(url)
        except _MissingError as err:
            raise DownloadHTTPError(str(err), _NOT_FOUND) from err
        except SlowRepositoryError as err:
            raise SlowRetrievalError(err.message) from err

    def _continued(self, url: str) -> Iterator[bytes]:
        """Yield the bytes of ``url``; where the link breaks, go on if the file is a lasting one."""
        came = idle = 0
        while True:
            before = came
            try:
                with self._answer(url, came) as (begins, pieces):
                    # What came already comes again from a server that knows no ranges.
                    again = came - begins
                    for piece in self._paced(pieces, url):
                        new, again = piece[again:], max(0, again - len(piece))
                        came += len(new)
                        yield new
            except _CutError:
                idle = 0 if came > before else idle + 1
                # Without a byte it may be a connection that the server had closed meanwhile.
                most = 2 if not came else self._limits.attempts if _is_lasting(url) else 0
                if idle >= most:
                    raise
            else:
                return
            self._pause(idle)

    def download(
        self,
        url: str,
        path: Path,
        *,
        size: int,
        digest: str,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Bring ``path`` to the ``size`` bytes of ``url``, going on where an earlier call ended.

        ``digest``: that the whole file must have. ``progress`` takes the bytes that are here, about
        once a second. Raises RepositoryError where the repository does
        not deliver, SlowRepositoryError for a link below the limits, VerificationError for other
        bytes, which are removed, and StorageError.
        """
        try:
            self._complete(url, path, size, progress)
            if (got := file_digest(path)) == digest:
                return
            path.unlink()
        except OSError as err:
            raise refused(err) from err
        raise VerificationError(
            f"{url}: expected {digest}, got {got}",
            fix="the repository or the link changes bytes; try again, or use another mirror",
        )

    def _complete(self, url: str, path: Path, size: int, progress: Callable[[int], None]) -> None:
        """Append to ``path`` until it has ``size`` bytes."""
        path.touch()
        idle, furthest = 0, path.stat().st_size
        while (start := path.stat().st_size) != size:
            fault = self._append(url, path, start, size, progress)
            reached = path.stat().st_size
            idle = 0 if reached > furthest else idle + 1
            furthest = max(furthest, reached)
            if fault is None:
                continue
            if idle >= self._limits.attempts or not isinstance(fault, _CutError):
                raise fault
            self._pause(idle)

    def _append(
        self, url: str, path: Path, start: int, size: int, progress: Callable[[int], None]
    ) -> RepositoryError | None:
        """Write what one answer brings; return why it ended early, None if it did not."""
        with path.open("r+b") as file:
            if start > size:
                file.truncate()
                start = 0
            try:
                with self._answer(url, start) as (begins, pieces):
                    file.truncate(begins)
                    file.seek(begins)
                    shown = time.monotonic()
                    for piece in self._paced(pieces, url):
                        file.write(piece[: max(0, size - file.tell())])
                        if time.monotonic() - shown > _SHOW_S:
                            progress(file.tell())
                            shown = time.monotonic()
                        if file.tell() >= size:
                            return None
            except _NoBeginningError as err:
                file.truncate(0)
                return err
            except RepositoryError as err:
                return err
        return _CutError(f"{url}: the answer ended before its {size} bytes", fix=_LATER)

    def _paced(self, pieces: Iterator[bytes], url: str) -> Iterator[bytes]:
        """Pass ``pieces`` on, no faster than the bandwidth. Raises SlowRepositoryError."""
        began = opened = time.monotonic()
        total = within = 0
        for piece in pieces:
            self.received_bytes += len(piece)
            yield piece
            total, within = total + len(piece), within + len(piece)
            now = time.monotonic()
            if self._limits.bandwidth is not None:
                ahead_s = total / self._limits.bandwidth - (now - began)
                if ahead_s > 0:
                    self._wait(ahead_s)
                    # What we waited is not the link's.
                    opened += ahead_s
            if now - opened >= _WINDOW_S:
                if within < self._limits.least_bytes_per_s * (now - opened):
                    raise self._slow(url)
                opened, within = now, 0

    def _pause(self, idle: int) -> None:
        """Wait before the next attempt; ``idle``: attempts in a row that brought no byte."""
        self._wait(self._limits.pause_s * 2 ** max(0, idle - 1))

    def _slow(self, url: str) -> SlowRepositoryError:
        return SlowRepositoryError(
            f"{url}: expected at least {self._limits.least_bytes_per_s:.0f} bytes a second, "
            "got fewer",
            fix=_LATER,
        )

    # -- where the bytes lie -----------------------------------------------------------------------

    @contextmanager
    def _answer(self, url: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Yield where the answer begins, ``start`` or 0, and its pieces."""
        match urlsplit(url).scheme:
            case "file":
                with _file_answer(url, start) as pieces:
                    yield start, pieces
            case "http" | "https":
                with self._http_answer(url, start) as answer:
                    yield answer
            case other:
                raise UsageError(
                    f"expected a repository at https://, http:// or file://, got {other!r:.40}",
                    fix="name it as https://HOST/PATH, or file:///media/usb/site",
                )

    @contextmanager
    def _http_answer(self, url: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        # Packed bytes could not be continued, and unpacked ones would not be the file's.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        try:
            response = self._pool(url).request(
                "GET",
                url,
                headers=headers,
                preload_content=False,
                retries=urllib3.Retry(0, redirect=3),
                timeout=urllib3.Timeout(connect=self._limits.connect_s, read=self._limits.stall_s),
            )
        except HTTPError as err:
            raise self._broken(url, err) from err
        try:
            yield _begin(url, start, response), self._pieces(url, response)
        finally:
            # An answer that was left under way cannot be used again.
            response.close()
            response.release_conn()

    def _pieces(self, url: str, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        try:
            # read1: what is there, so that nothing is lost when the link breaks.
            while piece := response.read1(_CHUNK_BYTES, decode_content=False):
                yield piece
        except HTTPError as err:
            raise self._broken(url, err) from err
        except OSError as err:
            raise _CutError(f"{url}: {err.strerror or err}", fix=_LATER) from err

    def _broken(self, url: str, err: HTTPError) -> RepositoryError:
        cause = getattr(err, "reason", None) or next(iter(err.args[1:]), err)
        if isinstance(cause, LinkTimeoutError) and not isinstance(cause, ConnectTimeoutError):
            return _StalledError(f"{url}: no byte came for {self._limits.stall_s:g} s", fix=_LATER)
        if isinstance(cause, IncompleteRead):
            return _CutError(f"{url}: the connection broke off within the file", fix=_LATER)
        return _CutError(f"{url}: {str(cause)[:300]}", fix=_LATER)

    def _pool(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        if parts.scheme not in self._pools:
            proxy = getproxies().get(parts.scheme)
            use_proxy = proxy and not proxy_bypass(parts.hostname or "")
            self._pools[parts.scheme] = (
                urllib3.ProxyManager(proxy) if proxy and use_proxy else urllib3.PoolManager()
            )
        return self._pools[parts.scheme]


class _CutError(RepositoryError):
    """The link broke or was not there; trying again may help."""


class _StalledError(SlowRepositoryError, _CutError):
    """The link brought nothing for too long; trying again may help."""


class _NoBeginningError(_CutError):
    """The file is shorter there than what lies here; from its start on it may come."""


class _MissingError(RepositoryError):
    """The repository has no such file."""


_LATER = "check the network and the repository's address; what came so far is kept, so try again"


def _is_lasting(url: str) -> bool:
    """Whether a file never changes: metadata whose name begins with its version (TUF 6.2)."""
    return urlsplit(url).path.rpartition("/")[2][:1].isdigit()


def _begin(url: str, start: int, response: urllib3.BaseHTTPResponse) -> int:
    """Return the byte at which an answer begins. Raises RepositoryError for one without a body."""
    if response.status in (_NOT_FOUND, 403):
        raise _MissingError(f"{url}: the repository has no such file", fix=_LATER)
    if response.status == _NO_SUCH_RANGE:
        raise _NoBeginningError(f"{url}: what came so far is no beginning of it", fix=_LATER)
    if response.status == _PARTIAL and start:
        said = response.headers.get("Content-Range", "")
        if not said.startswith(f"bytes {start}-"):
            raise RepositoryError(
                f"{url}: expected bytes from {start} on, got {said!r:.60}", fix=_LATER
            )
        return start
    if response.status != 200:
        raise _CutError(f"{url}: expected a file, got HTTP status {response.status}", fix=_LATER)
    return 0


@contextmanager
def _file_answer(url: str, start: int) -> Iterator[Iterator[bytes]]:
    path = Path(url2pathname(urlsplit(url).path))
    if not path.exists():
        raise _MissingError(f"{url}: the repository has no such file", fix=_LATER)
    try:
        with open_limited(path, limit_bytes=_LARGEST_BYTES, what="repository's file") as (file, _):
            file.seek(start)
            yield iter(lambda: file.read(_CHUNK_BYTES), b"")
    except StorageError as err:
        raise _CutError(err.message, fix=_LATER) from err

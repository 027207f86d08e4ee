"""A web server that serves a folder and can be told to be a bad link."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@dataclass
class Link:
    """What the server does, as it is now; a test changes it under way.

    ``cut_after``: bytes of a body after which the connection breaks. ``pause_s``: before each piece
    of ``piece`` bytes. ``ranges``: whether it knows them. ``status``: an answer for everything.
    ``flip``: the byte of each file that is changed. ``only``: what the address of a file has to
    hold for the link to be a bad one. ``sent``: bytes of bodies that went out.
    """

    cut_after: int | None = None
    piece: int = 1 << 16
    pause_s: float = 0.0
    ranges: bool = True
    lies: bool = False
    status: int | None = None
    flip: int | None = None
    only: str = ""
    sent: int = 0
    asked: list[str] = field(default_factory=list)

    def bad(self, path: str) -> Link:
        """Return how the link is for a file: this one, or a good one."""
        return self if self.only in path else Link()


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, Link]]:
    """Serve ``folder`` on a free port of this machine; yield its address and its link."""
    link = Link()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.close_connection = True
            link.asked.append(self.path)
            path = folder / unquote(self.path).lstrip("/")
            now = link.bad(self.path)
            if now.status is not None or not path.is_file():
                self.send_error(now.status or 404)
                return
            self._send(bytearray(path.read_bytes()), now)

        def _send(self, data: bytearray, now: Link) -> None:
            if now.flip is not None and now.flip < len(data):
                data[now.flip] ^= 1
            start = self._start(len(data), now)
            if start is None:
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            if start:
                told = start + 1 if now.lies else start
                self.send_header("Content-Range", f"bytes {told}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            self._body(data[start:][: now.cut_after], now)

        def _start(self, size: int, now: Link) -> int | None:
            text = self.headers.get("Range")
            if text is None or not now.ranges:
                return 0
            start = int(text.removeprefix("bytes=").removesuffix("-"))
            return start if start < size else None

        def _body(self, data: bytearray, now: Link) -> None:
            for at in range(0, len(data), now.piece):
                if now.pause_s:
                    time.sleep(now.pause_s)
                piece = data[at : at + now.piece]
                try:
                    self.wfile.write(piece)
                except OSError:
                    return
                link.sent += len(piece)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", link
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

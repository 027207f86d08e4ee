"""How the tests ask: an application without sockets, a server over raw ones, and toy requests."""

from __future__ import annotations

import http.client
import io
import json
import socket
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toolchain.device.serve import Server
from toolchain.device.serve.app import App

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Answer:
    """What came back; ``value`` is the JSON of it, None where binary data follow."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def value(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        assert set(self.value) == {"error"}
        return str(self.value["error"])


def call(
    app: App,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """Ask a WSGI application as a server would; ``path`` is percent-decoded."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path.encode().decode("latin-1"),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "localhost",
        "wsgi.input": io.BytesIO(body or b""),
    }
    if body is not None:
        environ["CONTENT_LENGTH"] = str(len(body))
    for name, value in (headers or {}).items():
        key = name.upper().replace("-", "_")
        environ[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value
    starts: list[tuple[str, list[tuple[str, str]]]] = []
    data = b"".join(app(environ, lambda status, fields: starts.append((status, fields))))
    ((status, fields),) = starts
    return Answer(int(status[:3]), dict(fields), data)


def ask(
    server: Server,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """Ask a server over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()


def opened(server: Server) -> socket.socket:
    """Return a connection to write any bytes to."""
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def rest(connection: socket.socket) -> bytes:
    """Return all bytes until the server closes the connection."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def pictures(count: int = 1, size: int = 12) -> npt.NDArray[np.float32]:
    """Prepared toy tensors, float32 ``[count, 3, size, size]``."""
    drawn = np.random.default_rng(0).standard_normal((count, 3, size, size))
    return drawn.astype(np.float32)


def inference(tensor: npt.NDArray[np.float32], **further: Any) -> bytes:
    """Return a request in JSON for ``tensor``."""
    image = {
        "name": "image",
        "datatype": "FP32",
        "shape": list(tensor.shape),
        "data": tensor.ravel().tolist(),
    }
    return json.dumps({"inputs": [image], **further}).encode()

"""One HTTP request as the application reads it, and which requests are not read at all.

Rules of this file: headers and paths are text from anybody. A body is read once, and only when a
handler wants it. Its length must be stated and within its limit.

Sources: RFC 9110 (421: section 15.5.20; Origin: RFC 6454, section 7.3), RFC 9112 (Host: 3.2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any

from toolchain.core.errors import DataError
from toolchain.device.serve.faults import RefusedError

_TYPES = ("application/json", "application/octet-stream")
# A name or an address, and a port that says nothing here.
_HOST = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[^:\[\]]+))(?::[0-9]{0,5})?")


class HttpRequest:
    """A request behind WSGI's ``environ``; ``limit_bytes`` of its body are read at most.

    ``segments`` are the parts of its path, percent-decoded (an encoded slash parts them as well).
    Raises DataError for a path that is no UTF-8.
    """

    def __init__(self, environ: Mapping[str, Any], limit_bytes: int) -> None:
        self._environ = environ
        self._limit_bytes = limit_bytes
        self.method = str(environ["REQUEST_METHOD"])
        try:
            # PEP 3333 carries bytes as Latin-1.
            path = str(environ["PATH_INFO"]).encode("latin-1").decode("utf-8")
        except UnicodeError as err:
            raise DataError("expected a path in UTF-8, got other bytes") from err
        self.segments = tuple(path.removeprefix("/").split("/"))

    def header(self, name: str) -> str | None:
        """Return a header's value, or None."""
        key = name.upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = f"HTTP_{key}"
        return self._environ.get(key) or None

    @property
    def protocol(self) -> str:
        """The version of HTTP, such as "HTTP/1.1"."""
        return str(self._environ.get("SERVER_PROTOCOL", ""))

    def body(self, *, limit_bytes: int | None = None, needed: bool = True) -> bytes:
        """Return the whole body; empty where it is missing and not ``needed``.

        Raises RefusedError: 411 for a missing length, 413 for more than the limit; DataError for
        fewer bytes than announced.
        """
        stated = self.header("Content-Length")
        if stated is None:
            if needed:
                raise RefusedError(
                    HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length, got none"
                )
            return b""
        limit = self._limit_bytes if limit_bytes is None else min(limit_bytes, self._limit_bytes)
        if not re.fullmatch("[0-9]{1,18}", stated):
            raise DataError("expected a Content-Length in digits, got another value")
        if int(stated) > limit:
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"expected a body of at most {limit} bytes, got {int(stated)}",
            )
        data: bytes = self._environ["wsgi.input"].read(int(stated))
        if len(data) != int(stated):
            raise DataError(f"expected a body of {int(stated)} bytes, got {len(data)}")
        return data


def guard(call: HttpRequest, *, loopback: bool) -> None:
    """Refuse a request that nobody on this machine sent on purpose, and one in an unknown form.

    Raises RefusedError: 400 without Host, 421 for a Host that is not this machine (if
    ``loopback``), 403 for a web page's request, 415 for a content coding or type that is not read.
    """
    host = call.header("Host")
    if host is None and call.protocol == "HTTP/1.1":
        raise RefusedError(HTTPStatus.BAD_REQUEST, "expected a Host, got none")
    if loopback and host is not None and not _is_local(host):
        raise RefusedError(HTTPStatus.MISDIRECTED_REQUEST, "expected a Host on this machine")
    if call.header("Origin") is not None:
        raise RefusedError(HTTPStatus.FORBIDDEN, "requests of web pages are not answered")
    coding = call.header("Content-Encoding")
    if coding is not None and coding.lower() != "identity":
        raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected no Content-Encoding")
    kind = call.header("Content-Type")
    if kind is not None and kind.partition(";")[0].strip().lower() not in _TYPES:
        expected = " or ".join(_TYPES)
        raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"expected a Content-Type {expected}")


def _is_local(host: str) -> bool:
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = match["six"] or match["name"]
    if name.lower() == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False

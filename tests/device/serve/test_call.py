"""Which requests are not read at all."""

from __future__ import annotations

import io
from typing import Any

import pytest

from toolchain.core.errors import DataError
from toolchain.device.serve.call import HttpRequest, guard
from toolchain.device.serve.faults import RefusedError


def _call(**further: Any) -> HttpRequest:
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/v2", "SERVER_PROTOCOL": "HTTP/1.1"}
    return HttpRequest({**environ, "HTTP_HOST": "localhost:8000", **further}, 100)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1:8000", "127.1.2.3", "[::1]:8000", "[::1]"]
)
def test_a_host_on_this_machine_may_ask(host: str) -> None:
    guard(_call(HTTP_HOST=host), loopback=True)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost, evil.example",
        "evil@localhost",
        "10.0.0.1",
        "[::2]",
        "::1",
        "localhost:80:80",
        "localhost:123456",
        "2130706433",
        "%",
    ],
)
def test_dns_rebinding_is_refused(host: str) -> None:
    with pytest.raises(RefusedError) as caught:
        guard(_call(HTTP_HOST=host), loopback=True)
    assert caught.value.status == 421
    guard(_call(HTTP_HOST=host), loopback=False)


def test_a_missing_host_is_for_http_1_0_only() -> None:
    with pytest.raises(RefusedError, match="expected a Host") as caught:
        guard(_call(HTTP_HOST=""), loopback=False)
    assert caught.value.status == 400
    guard(_call(HTTP_HOST="", SERVER_PROTOCOL="HTTP/1.0"), loopback=True)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:8000"])
def test_a_web_page_may_not_ask(origin: str) -> None:
    with pytest.raises(RefusedError, match="web pages") as caught:
        guard(_call(HTTP_ORIGIN=origin), loopback=False)
    assert caught.value.status == 403


@pytest.mark.parametrize(
    "header",
    [
        {"HTTP_CONTENT_ENCODING": "gzip"},
        {"HTTP_CONTENT_ENCODING": "identity, deflate"},
        {"CONTENT_TYPE": "text/plain"},
        {"CONTENT_TYPE": "application/x-www-form-urlencoded"},
        {"CONTENT_TYPE": "multipart/form-data; boundary=application/json"},
    ],
)
def test_a_coding_or_type_that_is_not_read_is_refused(header: dict[str, str]) -> None:
    with pytest.raises(RefusedError) as caught:
        guard(_call(**header), loopback=True)
    assert caught.value.status == 415


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/Octet-Stream"])
def test_a_type_that_is_read_may_be_written_in_any_way(kind: str) -> None:
    guard(_call(CONTENT_TYPE=kind, HTTP_CONTENT_ENCODING="identity"), loopback=True)


@pytest.mark.parametrize("stated", ["-1", "+3", "3 ", "3, 3", "0x3", "٣", "9" * 30])
def test_a_content_length_that_is_none_is_refused(stated: str) -> None:
    call = _call(CONTENT_LENGTH=stated, **{"wsgi.input": io.BytesIO(b"abc")})
    with pytest.raises(DataError, match="Content-Length in digits"):
        call.body()


def test_a_truncated_body_is_refused() -> None:
    call = _call(CONTENT_LENGTH="4", **{"wsgi.input": io.BytesIO(b"abc")})
    with pytest.raises(DataError, match="expected a body of 4 bytes, got 3"):
        call.body()


def test_a_body_beyond_its_limit_is_not_read() -> None:
    call = _call(CONTENT_LENGTH="101")
    with pytest.raises(RefusedError, match="at most 100 bytes") as caught:
        call.body()
    assert caught.value.status == 413


def test_a_body_that_may_be_missing() -> None:
    assert _call().body(needed=False) == b""
    with pytest.raises(RefusedError) as caught:
        _call().body()
    assert caught.value.status == 411

"""Raw sockets: what clients do that are broken, slow or hostile."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.asking import ask, inference, opened, pictures, rest
from toolchain.device import Runner
from toolchain.device.serve import Limits, Server

HOST = b"Host: localhost\r\n"
INFER = b"POST /v2/models/toy_chirps/infer HTTP/1.1\r\n" + HOST
LIVE = b"GET /v2/health/live HTTP/1.1\r\n" + HOST + b"\r\n"


def _answered(server: Server, data: bytes) -> bytes:
    """Write ``data``, and nothing after it; return all that comes back."""
    with opened(server) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return rest(connection)


@pytest.fixture
def hasty(runner: Runner) -> Iterator[Server]:
    """A server that waits a second for a request."""
    with Server(runner, limits=Limits(receive_s=1)) as started:
        yield started


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        pytest.param(b"nonsense\r\n\r\n", 400, b"Start line", id="garbage"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400, b"Start line", id="TLS hello"),
        pytest.param(b"get / HTTP/1.1\r\n\r\n", 400, b"Malformed", id="lower-case method"),
        pytest.param(
            LIVE[:-2] + b"X: " + b"a" * 20_000 + b"\r\n\r\n", 431, b"max_header", id="giant header"
        ),
        pytest.param(INFER + b"Content-Length: -5\r\n\r\n", 400, b"invalid", id="negative length"),
        pytest.param(
            INFER + b"Content-Length: 2\r\nContent-Length: 9\r\n\r\n{}",
            400,
            b"invalid",
            id="two lengths",
        ),
        pytest.param(
            INFER + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            411,
            b"expected a Content-Length",
            id="chunked",
        ),
        pytest.param(
            INFER + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            411,
            b"expected a Content-Length",
            id="smuggling by both lengths",
        ),
        pytest.param(
            INFER.replace(b"1.1", b"1.0") + b"Connection: keep-alive\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            411,
            b"expected a Content-Length",
            id="smuggling by HTTP 1.0",
        ),
        pytest.param(
            INFER + b"Transfer-Encoding: gzip\r\n\r\n", 501, b"not supported", id="unknown coding"
        ),
        pytest.param(
            INFER + b"Content-Length: 99999999999\r\n\r\n{", 413, b"max_body", id="giant length"
        ),
        pytest.param(
            INFER + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{",
            400,
            b"Content-Length is invalid",
            id="a length of 5000 digits",
        ),
        pytest.param(
            INFER + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b",
            415,
            b"no Content-Encoding",
            id="gzip bomb",
        ),
        pytest.param(
            INFER + b"Content-Length: 2\r\nInference-Header-Content-Length: 3\r\n\r\n{}",
            400,
            b"a number from 0 to 2",
            id="header beyond the body",
        ),
        pytest.param(
            LIVE.replace(b"localhost", b"evil.example"), 421, b"this machine", id="DNS rebinding"
        ),
        pytest.param(LIVE.replace(HOST, b""), 400, b"expected a Host", id="no Host"),
        pytest.param(
            b"GET /v2/models/%ff HTTP/1.1\r\n" + HOST + b"\r\n", 400, b"UTF-8", id="no UTF-8"
        ),
    ],
)
def test_a_broken_request_is_answered_with_an_error_in_json(
    server: Server, data: bytes, status: int, said: bytes
) -> None:
    answer = _answered(server, data)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert re.match(rb"HTTP/1\.[01] %d " % status, head), answer
    assert body.startswith(b'{"error":')
    assert said in body
    assert b"waitress" not in answer
    assert ask(server, "GET", "/v2/health/live").status == 200


def test_who_sends_a_giant_body_reads_why_it_was_refused(server: Server) -> None:
    body = b"x" * 20_000_000
    assert ask(server, "POST", "/v2/models/toy_chirps/infer", body).status == 413


def test_nothing_after_a_refused_body_is_read_as_a_request(server: Server) -> None:
    smuggled = INFER + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + LIVE
    assert _answered(server, smuggled).count(b"HTTP/1.1 ") == 1


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    last = LIVE.replace(b"live", b"none")[:-2] + b"Connection: close\r\n\r\n"
    with opened(server) as connection:
        connection.sendall(LIVE + LIVE.replace(b"live", b"ready") + last)
        answer = rest(connection)
    at = [answer.find(part) for part in (b'"live"', b'"ready"', b"no such resource")]
    assert at == sorted(at)
    assert -1 not in at


def test_a_head_has_no_body_that_the_next_answer_would_be_read_behind(server: Server) -> None:
    with opened(server) as connection:
        connection.sendall(LIVE.replace(b"GET", b"HEAD") + LIVE.replace(b"live", b"x"))
        connection.shutdown(socket.SHUT_WR)
        answer = rest(connection)
    assert answer.count(b"HTTP/1.1 ") == 2
    assert b"Content-Length: 13\r\n" in answer
    assert b'{"live"' not in answer


def test_a_truncated_body_is_never_answered(server: Server) -> None:
    assert _answered(server, INFER + b"Content-Length: 100\r\n\r\n{}") == b""
    assert ask(server, "GET", "/v2/health/live").status == 200


def test_a_client_that_leaves_before_its_answer_harms_nobody(server: Server) -> None:
    body = inference(pictures())
    for _ in range(5):
        with opened(server) as connection:
            connection.sendall(INFER + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    response = ask(server, "POST", "/v2/models/toy_chirps/infer", body)
    assert response.status in (200, 503)


def test_who_waits_to_continue_is_told_to(server: Server) -> None:
    body = inference(pictures())
    head = INFER + b"Content-Length: %d\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    with opened(server) as connection:
        connection.sendall(head % len(body))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert rest(connection).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("length", [b"Content-Length: 999999999", b"Transfer-Encoding: chunked"])
def test_a_body_that_will_be_refused_is_not_asked_for(server: Server, length: bytes) -> None:
    with opened(server) as connection:
        connection.sendall(INFER + length + b"\r\nExpect: 100-continue\r\n\r\n")
        assert rest(connection).startswith(b"HTTP/1.1 41")


def _cut_off(connection: socket.socket, drip: bytes) -> float:
    """Send ``drip`` again and again; return after how many seconds the server hung up."""
    begun = time.monotonic()
    connection.settimeout(0.1)
    while time.monotonic() - begun < 15:
        try:
            if drip:
                connection.sendall(drip)
            if connection.recv(100) == b"":
                return time.monotonic() - begun
        except TimeoutError:
            continue
        except ConnectionError:
            return time.monotonic() - begun
    raise AssertionError("the server never hung up")


def test_a_silent_connection_is_closed(hasty: Server) -> None:
    with opened(hasty) as connection:
        assert _cut_off(connection, b"") < 10


def test_who_never_takes_the_answers_is_cut_off(hasty: Server) -> None:
    with opened(hasty) as connection:
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                connection.send(LIVE * 1000)
        connection.settimeout(20)
        with pytest.raises(ConnectionError):
            connection.sendall(LIVE * 1_000_000)


@pytest.mark.parametrize(
    "begin", [LIVE[:-2] + b"X: ", INFER + b"Content-Length: 1000\r\n\r\n"], ids=["head", "body"]
)
def test_slowloris_is_cut_off(hasty: Server, begin: bytes) -> None:
    with opened(hasty) as connection:
        connection.sendall(begin)
        assert _cut_off(connection, b"a") < 10
    assert ask(hasty, "GET", "/v2/health/live").status == 200


def test_beyond_the_connections_one_waits_until_another_closes(runner: Runner) -> None:
    limits = Limits(connections=1, concurrent=1, waiting=0)
    with Server(runner, limits=limits) as server:
        idle = [opened(server) for _ in range(limits.connection_limit)]
        for connection in idle:
            connection.sendall(LIVE)
            assert connection.recv(1000)
        with opened(server) as late:
            late.sendall(LIVE)
            late.settimeout(0.3)
            with pytest.raises(TimeoutError):
                late.recv(1000)
            idle.pop().close()
            late.settimeout(10)
            assert late.recv(1000).startswith(b"HTTP/1.1 200")
        for connection in idle:
            connection.close()


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50
)
@given(st.binary(max_size=200), st.sampled_from([b"", INFER, LIVE[:-2], LIVE]))
def test_any_bytes_leave_a_server_that_answers(server: Server, data: bytes, begin: bytes) -> None:
    assert not _answered(server, begin + data).startswith(b"HTTP/1.1 500")
    assert ask(server, "GET", "/v2/health/live").status == 200


def test_hundreds_of_connections_one_after_another_leave_nothing(server: Server) -> None:
    for _ in range(300):
        with opened(server) as connection:
            connection.sendall(LIVE[:20])
    assert ask(server, "GET", "/v2/health/live").status == 200

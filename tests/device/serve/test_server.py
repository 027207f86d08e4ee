"""The server's life: address, overload and recovery, and its end."""

from __future__ import annotations

import http.client
import re
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.asking import Answer, ask, inference, opened, pictures
from tests.support.waiting import until
from toolchain.core.errors import MissingPackageError, RunError, UsageError
from toolchain.device import Runner
from toolchain.device.serve import Limits, Server, serve
from toolchain.device.serve.server import share_the_interpreter

INFER = "/v2/models/toy_chirps/infer"
BODY = inference(pictures())


@contextmanager
def _full(server: Server) -> Iterator[list[Future[Answer]]]:
    """The server's one place is taken, and one request stands in line."""
    with ThreadPoolExecutor(1) as pool, server.app.inferring.turn():
        waiting = [pool.submit(ask, server, "POST", INFER, BODY)]
        until(lambda: server.app.inferring.waiting == 1)
        yield waiting


def test_an_overloaded_server_says_so_at_once_and_recovers(server: Server) -> None:
    with _full(server) as waiting:
        response = ask(server, "POST", INFER, BODY)
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
        assert "overloaded" in response.error
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/toy_chirps"):
            assert ask(server, "GET", path).status == 200
        assert not waiting[0].done()
    assert waiting[0].result().status == 200
    assert ask(server, "POST", INFER, BODY).status == 200


def test_a_long_line_leaves_room_for_health_and_refusals(runner: Runner) -> None:
    limits = Limits(concurrent=1, waiting=80, connections=1)
    with Server(runner, limits=limits) as server, ThreadPoolExecutor(80) as pool:
        with server.app.inferring.turn():
            jobs = [pool.submit(ask, server, "POST", INFER, BODY) for _ in range(80)]
            until(lambda: server.app.inferring.waiting == 80)
            assert ask(server, "GET", "/v2/health/ready").status == 200
            assert ask(server, "POST", INFER, BODY).status == 503
        assert {one.result().status for one in jobs} == {200}


def test_many_clients_get_an_answer_or_a_503(server: Server) -> None:
    with ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(lambda _: ask(server, "POST", INFER, BODY), range(60)))
    assert {one.status for one in responses} <= {200, 503}
    assert [one for one in responses if one.status == 200]
    assert (server.app.inferring.running, server.app.inferring.waiting) == (0, 0)


def test_a_stopping_server_ends_what_it_began_and_takes_nothing_new(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("GET", "/v2/health/ready")
    assert connection.getresponse().read() == b'{"ready":true}'
    stopper = threading.Thread(target=server.stop)
    with _full(server) as waiting:
        stopper.start()
        until(lambda: not server.app.inferring.open)
        connection.request("GET", "/v2/health/ready")
        response = connection.getresponse()
        assert (response.status, b"stopping" in response.read()) == (503, True)
        until(lambda: _refuses(server))
        assert stopper.is_alive()
        assert not waiting[0].done()
    assert waiting[0].result().status == 200
    stopper.join()
    connection.close()


def _refuses(server: Server) -> bool:
    try:
        opened(server).close()
    except ConnectionError:
        return True
    return False


def test_a_request_beyond_the_grace_is_cut_off(runner: Runner) -> None:
    with Server(runner, limits=Limits(concurrent=1, waiting=1, grace_s=0)) as server:
        with _full(server) as waiting:
            server.stop()
            with pytest.raises((ConnectionError, http.client.HTTPException)):
                waiting[0].result()
        until(lambda: server.app.inferring.running == 0)


def test_a_server_may_be_stopped_twice_or_before_it_started(runner: Runner) -> None:
    unused = Server(runner)
    unused.stop()
    assert _refuses(unused)
    with Server(runner) as server:
        server.stop()
    server.stop()
    assert _refuses(server)


def test_stopping_while_connections_come_and_go_always_ends(runner: Runner) -> None:
    for _ in range(30):
        with Server(runner) as server, ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(_refuses, server) for _ in range(8)]
            server.stop()
            assert all(isinstance(one.result(), bool) for one in jobs)


def test_stopping_leaves_no_thread(runner: Runner) -> None:
    before = set(threading.enumerate())
    with Server(runner) as server:
        assert ask(server, "GET", "/v2").status == 200
        begun = set(threading.enumerate()) - before
    assert begun
    until(lambda: not begun & set(threading.enumerate()))


def test_serving_until_told_to_stop(runner: Runner) -> None:
    stop, listening = threading.Event(), threading.Event()
    urls: list[str] = []

    def notify(url: str) -> None:
        urls.append(url)
        listening.set()

    thread = threading.Thread(
        target=serve, args=(runner,), kwargs={"port": 0, "stop": stop, "notify": notify}
    )
    thread.start()
    assert listening.wait(10)
    assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+", urls[0])
    stop.set()
    thread.join(20)
    assert not thread.is_alive()


def test_a_taken_port_is_told_before_anything_starts(runner: Runner, server: Server) -> None:
    with pytest.raises(RunError, match=f"cannot listen on 127.0.0.1, port {server.port}"):
        Server(runner, port=server.port)


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", -1), ("127.0.0.1", 65536), ("no such host", 0), ("a" * 99, 0)]
)
def test_an_address_that_is_none_is_refused(runner: Runner, host: str, port: int) -> None:
    with pytest.raises(UsageError, match="expected a"):
        Server(runner, host=host, port=port)


def test_a_repository_that_is_no_folder_is_refused(runner: Runner, repository: Path) -> None:
    with pytest.raises(UsageError, match="expected a folder of bundles"):
        Server(runner, repository=repository / "toy_chirps.da3b")


def test_an_address_of_version_6(runner: Runner) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        server = Server(runner, host="::1")
    except RunError:
        pytest.skip("this machine has no ::1")
    with server:
        assert server.url == f"http://[::1]:{server.port}"
        connection = http.client.HTTPConnection("::1", server.port, timeout=20)
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().status == 200
        connection.close()


def test_without_waitress_the_extra_is_named(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "toolchain.device.serve.sockets", raising=False)
    monkeypatch.setitem(sys.modules, "waitress", None)
    with pytest.raises(MissingPackageError) as caught:
        Server(runner)
    assert "pip install '.[serve]'" in caught.value.fix


def test_a_name_with_spaces_and_letters_of_any_script(
    runner: Runner, server: Server, repository: Path
) -> None:
    runner.load(repository / "toy_chirps.da3b", name="Käfer 虫")
    path = "/v2/models/K%C3%A4fer%20%E8%99%AB"
    assert ask(server, "GET", path).value["name"] == "Käfer 虫"
    assert ask(server, "POST", f"{path}/infer", BODY).value["model_name"] == "Käfer 虫"
    assert ask(server, "POST", f"/v2/repository/models/{path[11:]}/unload").status == 200
    assert "Käfer 虫" not in runner.domains


def test_threads_take_turns_each_millisecond_where_the_program_wants_it() -> None:
    """The library itself never sets it: it holds for the whole process."""
    before = sys.getswitchinterval()
    try:
        share_the_interpreter()
        assert sys.getswitchinterval() == pytest.approx(1e-3)
    finally:
        sys.setswitchinterval(before)

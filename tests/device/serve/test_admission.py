"""Admission: never more than the places, never lost places, and an answer for the rest."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.support.waiting import until
from toolchain.device.serve.admission import Admission
from toolchain.device.serve.faults import RefusedError


@contextmanager
def _in_line(admission: Admission) -> Iterator[threading.Thread]:
    """A thread that stands in line within the block, and has had its turn after it."""

    def wait() -> None:
        with admission.turn():
            pass

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: admission.waiting == 1)
    yield thread
    thread.join()


def test_beyond_places_and_line_a_request_is_refused_at_once() -> None:
    admission = Admission(1, 1, 10)
    with (
        _in_line_after(admission),
        pytest.raises(RefusedError, match="1 requests run and 1 wait") as caught,
        admission.turn(),
    ):
        pass
    assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "1"})
    assert (admission.running, admission.waiting) == (0, 0)
    with admission.turn() as waited:
        assert waited < 1


@contextmanager
def _in_line_after(admission: Admission) -> Iterator[None]:
    """The place is taken and another one stands in line."""
    with admission.turn():
        context = _in_line(admission)
        context.__enter__()
        yield
    context.__exit__(None, None, None)


def test_no_turn_within_the_patience_is_refused() -> None:
    admission = Admission(1, 1, 0.01)
    with (
        admission.turn(),
        pytest.raises(RefusedError, match=r"no turn came within 0\.01 s"),
        admission.turn(),
    ):
        pass
    assert (admission.running, admission.waiting) == (0, 0)


def test_without_a_line_only_the_places_count() -> None:
    admission = Admission(2, 0, 10)
    with admission.turn(), admission.turn():
        with pytest.raises(RefusedError), admission.turn():
            pass
        assert admission.running == 2


def test_an_error_gives_the_place_back() -> None:
    admission = Admission(1, 0, 10)
    with pytest.raises(ZeroDivisionError), admission.turn():
        raise ZeroDivisionError
    with admission.turn():
        assert admission.running == 1


def test_closing_refuses_who_comes_and_serves_who_waits() -> None:
    admission = Admission(1, 1, 10)
    with _in_line_after(admission):
        admission.close()
        with pytest.raises(RefusedError, match="the server is stopping"), admission.turn():
            pass
    assert not admission.open


def test_many_threads_never_have_more_than_the_places() -> None:
    admission = Admission(3, 100, 10)
    most: list[int] = []

    def work(_: int) -> None:
        with admission.turn():
            most.append(admission.running)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(500)))
    assert len(most) == 500
    assert max(most) <= 3
    assert (admission.running, admission.waiting) == (0, 0)

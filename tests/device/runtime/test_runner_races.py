"""Races between loading, replacing, installing and closing: limits and names hold."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.support.drawn import tensor
from tests.support.exported import Fleet
from toolchain.core.errors import (
    ClosedError,
    ExistsError,
    LoadedError,
    SessionLimitError,
    UnknownNameError,
)
from toolchain.device import Runner

IMAGES = tensor(3, 42)
REFUSALS = (LoadedError, UnknownNameError, SessionLimitError)


def at_once(*actions: Callable[[], Any]) -> list[Any]:
    """Start all together; return each result, or the error of ours that it raised."""
    gate = threading.Barrier(len(actions))

    def started(action: Callable[[], Any]) -> Any:
        gate.wait()
        try:
            return action()
        except REFUSALS as err:
            return err

    with ThreadPoolExecutor(len(actions)) as pool:
        return list(pool.map(started, actions))


def test_two_domains_that_misfit_never_hold_two_sessions(artefact: Path, fleet: Fleet) -> None:
    for _ in range(10):
        with Runner(artefact, sessions=1) as runner:
            results = at_once(
                lambda r=runner: r.load(fleet["wide"].bundle),  # type: ignore[misc]
                lambda r=runner: r.load(fleet["da2"].bundle),  # type: ignore[misc]
            )
            assert sum(isinstance(one, SessionLimitError) for one in results) == 1
            assert len(runner.domains) == runner.facts.sessions == 1


def test_a_domain_that_comes_to_a_session_about_to_be_left_keeps_the_limit(
    artefact: Path, fleet: Fleet
) -> None:
    """Attack: a is moved to a session of its own while b comes to the one that a leaves."""
    for _ in range(20):
        with Runner(artefact, sessions=1) as runner:
            runner.load(fleet["first"].bundle, name="a")
            at_once(
                lambda r=runner: r.replace(fleet["wide"].bundle, name="a"),  # type: ignore[misc]
                lambda r=runner: r.load(fleet["next"].bundle, name="b"),  # type: ignore[misc]
            )
            sessions = {domain.session for domain in runner.domains.values()}
            assert len(sessions) == runner.facts.sessions == 1
            for name in runner.domains:
                runner.infer(IMAGES, name)


def test_a_session_that_was_left_is_gone_before_another_is_made(
    artefact: Path, fleet: Fleet
) -> None:
    """Seen from outside while one is made and tested, over and over."""
    done, counts = threading.Event(), set()

    def watch(runner: Runner) -> None:
        while not done.is_set():
            counts.add(runner.facts.sessions)

    with Runner(artefact, sessions=1) as runner, ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch, runner)
        for name in ("wide", "da2") * 5:
            runner.load(fleet[name].bundle, name="one")
            runner.unload("one")
        done.set()
        watching.result()
    assert counts <= {0, 1}


def test_one_name_is_loaded_once(artefact: Path, fleet: Fleet) -> None:
    with Runner(artefact) as runner:
        results = at_once(*[lambda: runner.load(fleet["first"].bundle) for _ in range(6)])
        assert sum(isinstance(one, LoadedError) for one in results) == 5
        assert runner.domains["toy_chirps"] in results


def test_one_folder_is_installed_once(artefact: Path, fleet: Fleet, tmp_path: Path) -> None:
    def install(runner: Runner) -> Any:
        try:
            return runner.install(fleet["first"].bundle, tmp_path / "new")
        except ExistsError as err:
            return err

    with Runner(artefact) as runner:
        results = at_once(*[lambda: install(runner) for _ in range(4)])
        assert sum(isinstance(one, ExistsError) for one in results) == 3
        assert runner.load(tmp_path / "new").name == "toy_chirps"


def test_closing_while_domains_are_loaded_leaves_nothing_behind(
    artefact: Path, fleet: Fleet
) -> None:
    for _ in range(10):
        runner = Runner(artefact)

        def load(runner: Runner = runner) -> Any:
            try:
                return runner.load(fleet["first"].bundle)
            except ClosedError as err:
                return err

        at_once(load, runner.close)
        assert runner.domains == {}
        assert runner.facts.sessions == 0

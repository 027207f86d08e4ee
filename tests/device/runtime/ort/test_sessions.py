"""Which session a load gets: its own until it is published, then everybody's of an equal graph."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.exported import Fleet
from tests.support.waiting import until
from toolchain.bundle import open_bundle
from toolchain.bundle.release import Release, read_release
from toolchain.core.errors import BundleError, ClosedError, SelftestError, SessionLimitError
from toolchain.device.runtime.backbone_session import BackboneSession
from toolchain.device.runtime.ort.backbone import open_verified
from toolchain.device.runtime.ort.sessions import Sessions

Make = Callable[[int], tuple[Sessions, list[BackboneSession]]]


@pytest.fixture
def make(artefact: Path) -> Make:
    """Sessions with a limit, and the list of those that loaded domains use."""

    def made(limit: int) -> tuple[Sessions, list[BackboneSession]]:
        used: list[BackboneSession] = []
        backbone = open_verified(artefact)
        options = {"graph": "swap-if", "threads": 1, "provider": "cpu"}
        return Sessions(backbone, limit=limit, used=lambda: used, **options), used  # type: ignore[arg-type]

    return made


def release(fleet: Fleet, name: str) -> Release:
    return read_release(open_bundle(fleet[name].bundle))


def reserve(sessions: Sessions, release: Release) -> BackboneSession:
    with sessions.reserved(release, None) as session:
        return session


def is_waiting(sessions: Sessions) -> bool:
    return bool(sessions._changed._waiters)  # type: ignore[attr-defined]


@pytest.mark.parametrize("limit", [1, 2])
def test_a_session_that_failed_is_never_anothers(make: Make, fleet: Fleet, limit: int) -> None:
    """Attack: a load of an equal graph comes while the first one is tested, which then fails."""
    sessions, _ = make(limit)
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(SelftestError), sessions.reserved(release(fleet, "first"), None) as own:
            job = pool.submit(reserve, sessions, release(fleet, "next"))
            until(lambda: is_waiting(sessions))
            assert len(sessions) == 1
            raise SelftestError("this one fails")
        assert job.result() is not own
    assert len(sessions) == 0


def test_a_session_is_shared_once_a_loaded_domain_uses_it(make: Make, fleet: Fleet) -> None:
    sessions, used = make(1)
    with ThreadPoolExecutor(1) as pool:
        with sessions.reserved(release(fleet, "first"), None) as own:
            job = pool.submit(reserve, sessions, release(fleet, "digits"))
            until(lambda: is_waiting(sessions))
            used.append(own)
        assert job.result() is own
    assert reserve(sessions, release(fleet, "grey")) is own
    used.clear()
    assert reserve(sessions, release(fleet, "grey")) is not own


def test_a_load_of_another_graph_waits_for_nobody(make: Make, fleet: Fleet) -> None:
    sessions, _ = make(2)
    with (
        sessions.reserved(release(fleet, "first"), None) as one,
        sessions.reserved(release(fleet, "wide"), None) as other,
    ):
        assert one is not other
        with pytest.raises(SessionLimitError, match="another domain is being loaded") as caught:
            reserve(sessions, release(fleet, "da2"))
        assert "sessions=3" in caught.value.fix


def test_a_session_that_a_load_came_to_stays_though_its_domain_leaves(
    make: Make, fleet: Fleet
) -> None:
    sessions, used = make(1)
    first = release(fleet, "first")
    used.append(reserve(sessions, first))
    with sessions.reserved(release(fleet, "next"), None) as session:
        used.clear()
        assert len(sessions) == 1
        assert reserve(sessions, first) is session
        with pytest.raises(SessionLimitError, match="does not fit the loaded session"):
            reserve(sessions, release(fleet, "wide"))


def test_a_session_that_could_not_be_made_leaves_its_place(make: Make, fleet: Fleet) -> None:
    sessions, _ = make(1)
    good = release(fleet, "first")
    graph = good.graph("swap-if")
    bad = replace(good, graphs={"swap-if": replace(graph, read=lambda: b"no model")})
    with pytest.raises(BundleError):
        reserve(sessions, bad)
    assert len(sessions) == 0
    assert reserve(sessions, good).computed.graph == graph.digest


def test_closing_ends_what_waits(make: Make, fleet: Fleet) -> None:
    sessions, _ = make(1)
    with ThreadPoolExecutor(1) as pool, sessions.reserved(release(fleet, "first"), None):
        job = pool.submit(reserve, sessions, release(fleet, "next"))
        until(lambda: is_waiting(sessions))
        sessions.close()
        with pytest.raises(ClosedError):
            job.result()

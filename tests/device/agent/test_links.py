"""Bad links, through the whole agent: no byte twice, no wrong byte installed, and it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.support.fielded import SAMPLE, TOY, Fielded, ToyPublisher, fielded
from tests.support.mirror import Link, serving
from toolchain.core.errors import RepositoryError, SlowRepositoryError, TrustError
from toolchain.device.agent import operations
from toolchain.device.agent.agent import Agent, Round
from toolchain.device.agent.transport import TransferLimits

MOST = 1.05
BLOBS = "/blobs/"


@pytest.fixture
def link(publisher: ToyPublisher) -> Iterator[tuple[str, Link]]:
    with serving(publisher.site) as (url, link):
        yield url, link


@pytest.fixture
def empty(link: tuple[str, Link], publisher: ToyPublisher, tmp_path: Path) -> Fielded:
    """A device without anything, that looks at the site over the link."""
    return fielded(tmp_path / "device", publisher, link[0], domains=("sample",))


def once(field: Fielded) -> Round:
    return Agent(field.device, supplies=Path("/nowhere")).once()


def asked_bytes(link: Link, publisher: ToyPublisher) -> int:
    """The size of each file that was asked for, once."""
    paths = {publisher.site / unquote(path).lstrip("/") for path in link.asked}
    return sum(path.stat().st_size for path in paths if path.is_file())


def whole(field: Fielded) -> None:
    assert set(field.running()) == {str(TOY), str(SAMPLE)}
    assert field.store.verify().ok
    assert not [*(field.store.path / "part").iterdir()]


@pytest.mark.parametrize("cut", [1500, pytest.param(7000, marks=pytest.mark.full)])
def test_a_link_that_is_cut_again_and_again(
    cut: int, link: tuple[str, Link], empty: Fielded, publisher: ToyPublisher
) -> None:
    link[1].cut_after = cut
    assert once(empty).changed
    whole(empty)
    assert len(link[1].asked) > 12
    assert link[1].sent <= MOST * asked_bytes(link[1], publisher)


def test_a_device_that_is_switched_off_under_way_goes_on_where_it_was(
    link: tuple[str, Link], empty: Fielded, publisher: ToyPublisher
) -> None:
    link[1].cut_after, link[1].only = 4000, BLOBS
    empty.device = replace(empty.device, wait=_switched_off)
    for _ in range(4):
        with pytest.raises(SystemExit):
            once(empty)
    link[1].cut_after = None
    empty.device = replace(empty.device, wait=empty.waited.append)
    assert once(empty).changed
    whole(empty)
    # Only the timestamp is asked for each time anew.
    stamps = publisher.metadata("timestamp.json").stat().st_size * 4
    assert link[1].sent <= MOST * asked_bytes(link[1], publisher) + stamps


def _switched_off(seconds: float) -> None:
    raise SystemExit


def test_a_link_that_changes_bytes_installs_nothing(link: tuple[str, Link], empty: Fielded) -> None:
    link[1].flip, link[1].only = 100, BLOBS
    done = once(empty)
    assert [one.unit for one in done.failed] == [str(SAMPLE)]
    assert "expected sha256" in done.failed[0].reason
    assert not empty.store.state().held
    assert not empty.running()
    link[1].flip = None
    assert once(empty).changed
    whole(empty)


def test_a_link_that_changes_metadata_is_told_as_a_lie(
    link: tuple[str, Link], empty: Fielded
) -> None:
    link[1].flip, link[1].only = 300, "snapshot"
    with pytest.raises(TrustError):
        once(empty)
    assert not empty.store.state().held


@pytest.mark.parametrize("only", ["/metadata/", BLOBS])
def test_a_link_that_stalls_is_left_and_tried_again(
    only: str, link: tuple[str, Link], empty: Fielded, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = partial(TransferLimits, stall_s=0.5, attempts=1)
    monkeypatch.setattr(operations, "TransferLimits", short)
    link[1].pause_s, link[1].only = 1.5, only
    if only == BLOBS:
        assert "no byte came" in once(empty).failed[0].reason
    else:
        with pytest.raises(SlowRepositoryError, match="no byte came"):
            once(empty)
    assert not empty.running()


def test_a_link_that_drips_is_left(
    link: tuple[str, Link], running: Fielded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then keeps no device waiting for ever."""
    from toolchain.device.agent import transport

    monkeypatch.setattr(transport, "_WINDOW_S", 0.3)
    link[1].piece, link[1].pause_s = 1, 0.02
    running.policy(repository=link[0])
    before = running.running()
    with pytest.raises(SlowRepositoryError, match="at least 1024 bytes a second"):
        once(running)
    assert running.running() == before
    # A repository that is slow is no lie, so there is nothing to report.
    assert not [one for one in running.store.state().reports if "trust" in str(one.about)]


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_a_server_that_answers_errors_changes_nothing(
    status: int, link: tuple[str, Link], running: Fielded
) -> None:
    link[1].status = status
    running.policy(repository=link[0])
    before = running.store.state()
    with pytest.raises(RepositoryError):
        once(running)
    assert running.store.state() == before

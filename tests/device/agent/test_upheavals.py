"""What befalls a device: a wrong clock, a store that moves, a cache that is lost."""

from __future__ import annotations

import shutil
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tests.support.fielded import SAMPLE, TOY, Fielded, ToyPublisher, fielded, reopened
from toolchain.core.errors import ClockError, ExpiredError, RollbackError, TrustError
from toolchain.device.agent.agent import Agent, Round
from toolchain.trust.checks import EPOCH

AT_1970 = datetime(1970, 1, 1, 0, 5, tzinfo=timezone.utc)
AT_2040 = datetime(2040, 1, 1, tzinfo=timezone.utc)


def once(field: Fielded) -> Round:
    agent = Agent(field.device, supplies=Path("/nowhere"))
    agent.start()
    return agent.once()


def test_a_clock_at_1970_installs_moves_and_goes_on(
    publisher: ToyPublisher, tmp_path: Path
) -> None:
    """A board without a battery for its clock; then its store lies on another disk, half lost."""
    field = fielded(tmp_path / "device", publisher, domains=("sample",))
    field.now = AT_1970
    done = once(field)
    assert set(done.changed) == {str(TOY), str(SAMPLE)}
    assert "the clock shows 1970-01-01" in done.unchecked[0]
    # The time of the publish is known now, and outlives the next start at 1970.
    assert field.store.state().floors.clock == publisher.now.strftime("%Y-%m-%dT%H:%M:%SZ")
    shutil.copytree(field.store.path, tmp_path / "other disk" / "store", symlinks=True)
    shutil.rmtree(field.store.path)
    moved = reopened(tmp_path / "other disk" / "store", publisher)
    shutil.rmtree(moved.store.path / "trust" / "cache")
    moved.now = AT_1970
    assert moved.store.verify().ok
    digest = publisher.update("sample", "1.1")
    assert once(moved).changed == (str(SAMPLE),)
    assert moved.running()[str(SAMPLE)] == digest
    assert moved.store.domain("sample").resolve().is_relative_to(moved.store.path)
    assert moved.store.verify().ok


def test_a_clock_at_2040_is_told_reported_once_and_does_no_lasting_harm(running: Fielded) -> None:
    before = running.store.state()
    running.now = AT_2040
    for _ in range(2):
        with pytest.raises(ClockError, match="set the clock"):
            once(running)
    state = running.store.state()
    assert state.generations == before.generations
    assert state.floors == before.floors
    assert [one.about["what"] for one in state.reports].count("not trusted") == 1
    running.now = datetime(2026, 6, 1, 13, tzinfo=timezone.utc)
    assert once(running) == Round()


@pytest.mark.parametrize(("days", "error"), [(3, RollbackError), (30, ExpiredError)])
def test_a_clock_that_jumps_back_lets_no_old_site_in(
    days: int, error: type[TrustError], running: Fielded, publisher: ToyPublisher, tmp_path: Path
) -> None:
    """Attack: a mirror keeps an old state until the clocks of devices are set back to it."""
    shutil.copytree(publisher.site, tmp_path / "old")
    publisher.later(days)
    publisher.publish()
    running.now = publisher.now
    once(running)
    running.policy(repository=f"file://{tmp_path / 'old'}")
    for now in (publisher.now, datetime(2026, 6, 1, 12, tzinfo=timezone.utc), AT_1970):
        running.now = now
        shutil.rmtree(running.store.path / "trust" / "cache", ignore_errors=True)
        with pytest.raises(error):
            once(running)
    assert running.store.state().floors.clock > EPOCH


@pytest.mark.parametrize("left", [0, 1, 100])
def test_a_cache_that_is_lost_or_cut_is_fetched_again(running: Fielded, left: int) -> None:
    cache = running.store.path / "trust" / "cache"
    for path in [path for path in cache.rglob("*") if path.is_file()]:
        path.write_bytes(path.read_bytes()[:left])
    assert once(running) == Round()
    shutil.rmtree(cache)
    assert once(running) == Round()


def test_a_time_of_day_that_never_comes_holds_nothing_up_for_ever(running: Fielded) -> None:
    """A clock that was set back by a day does not make the agent wait for more than a day."""
    from toolchain.device.agent.policy import Window

    running.policy(window=Window(start="11:59", end="12:00", zone="UTC"))
    for now in (AT_1970, AT_2040, running.now):
        running.now = now
        assert 0 < once(running).postponed_s <= 24 * 3600
